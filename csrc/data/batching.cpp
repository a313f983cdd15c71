#include "data/batching.h"

#include <algorithm>

namespace pyseq {
namespace {

using Wide = __int128;  // so that no limit and no length makes a product or a sum wrap

// Some samples, as far as a limit of tokens looks at them.
struct Samples {
  int64_t count = 0;
  int64_t longest = 0;
  Wide tokens = 0;

  Samples operator+(const Samples& other) const {
    return {count + other.count, std::max(longest, other.longest), tokens + other.tokens};
  }
};

bool exceeds(const Samples& samples, const BatchLimits& limits) {
  const Wide cost = limits.packed ? samples.tokens : Wide{samples.count} * samples.longest;
  return limits.max_tokens > 0 && cost > limits.max_tokens;
}

}  // namespace

Batches batch_by_size(const int64_t* num_tokens, int64_t n, const BatchLimits& limits, int64_t* ends) {
  int64_t count = 0;
  int64_t end = 0;  // of the open batch
  Samples batch;    // the open batch: its size is legal
  Samples tail;     // from `end` on: not yet legal together with the batch
  for (int64_t i = 0; i < n; ++i) {
    const Samples sample{1, num_tokens[i], num_tokens[i]};
    if (exceeds(sample, limits)) return {count, i};
    const Samples tail_before = tail;
    tail = tail + sample;
    const int64_t size = batch.count + tail.count;
    const bool overflow = (limits.max_sentences > 0 && size > limits.max_sentences) || exceeds(batch + tail, limits);
    if (overflow) {
      ends[count++] = end;
      if (exceeds(tail, limits)) {  // the tail fits only without this sample
        ends[count++] = end + tail_before.count;
        end += tail_before.count;
        tail = sample;
      }
      batch = {};
    }
    // What is left of the tail after an overflow is shorter than `multiple`, hence legal by itself.
    if (overflow || size < limits.multiple || size % limits.multiple == 0) {
      end = i + 1;
      batch = batch + tail;
      tail = {};
    }
  }
  if (batch.count > 0) ends[count++] = end;
  if (tail.count > 0) ends[count++] = n;
  return {count, -1};
}

}  // namespace pyseq
