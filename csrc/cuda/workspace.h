// What blocks of a launch tell each other.
#pragma once

namespace pyseq {

// Memory of a device that launches on one stream share. Zeroed once by whoever allocates it; every launch leaves the
// counters at zero.
struct Workspace {
  static constexpr int max_blocks = 8192;
  unsigned int norm_counter;
  unsigned int adam_counter;
  double partial[max_blocks];
};

}  // namespace pyseq
