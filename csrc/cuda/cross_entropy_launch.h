// How rows are spread over threads, blocks and clusters: a pure function of sizes and of the device's limits.
//
// Nothing depends on the number of rows, so a row's result has the same bits in every batch.
#pragma once

#include <algorithm>
#include <cstdint>

namespace pyseq {

struct DeviceLimits {
  int multiprocessors;
  int shared_per_multiprocessor;  // bytes
  int shared_per_block;           // bytes, the most that a kernel can opt in to
  int64_t l2;                     // bytes
  bool clusters;                  // sm_90 and later: blocks that read each other's shared memory
};

struct RowLaunch {
  int threads;         // of a row in a block: 32, or all of the block
  int rows_per_block;  // more than 1 only where a warp has a row of its own
  int cluster;         // blocks that share a row
  int slice;           // elements of a row that a block works on
  int kept;            // of these, how many stay in shared memory for the gradient; the rest is read again, from L2
  int row_bytes;       // shared memory of a row
};

constexpr int max_cols = 1 << 28;  // what an int can count in bytes, and a slice beyond the end
constexpr int max_threads = 384;       // two blocks of them leave a thread 80 registers
constexpr int resident_threads = 768;
constexpr int max_cluster = 8;         // what every device with clusters can launch
constexpr int packs_per_thread = 8;    // two batches of loads: fewer leave no time to hide the reduction of the row
constexpr int warp_row_bytes = 4096;   // up to here a warp is enough for a row, and needs no barrier
constexpr int warps_per_block = 4;
constexpr int reserved_shared = 3072;  // a block's: 1 KiB of the system, and the sums of its warps

// A row starts at any element, so it can touch one pack more than it fills.
constexpr int window_bytes(int elements, int element_size) { return (elements * element_size + 47) / 16 * 16; }

constexpr int kept_by(int bytes, int element_size) { return std::max(bytes - 48, 0) / element_size; }

constexpr int in_warps(int64_t threads) { return static_cast<int>((threads + 31) / 32 * 32); }

constexpr int threads_for(int elements, int element_size) {
  const int64_t packs = (static_cast<int64_t>(elements) * element_size + 15) / 16;
  return std::min(in_warps((packs + packs_per_thread - 1) / packs_per_thread), max_threads);
}

constexpr bool one_warp_a_row(int cols, int element_size) {
  return static_cast<int64_t>(cols) * element_size <= warp_row_bytes;
}

// Loss alone: a row is read once, and nothing of it is kept.
constexpr RowLaunch loss_launch(int cols, int element_size) {
  if (one_warp_a_row(cols, element_size)) {
    return {32, warps_per_block, 1, cols, 0, 0};
  }
  return {std::max(threads_for(cols, element_size), 64), 1, 1, cols, 0, 0};
}

// Loss and gradient: a row is read once into shared memory, and written from there. Two blocks have to fit on a
// multiprocessor, so that one reads while the other reduces or writes: where a whole row is too long for that, a
// cluster shares it; where there are no clusters, the part that does not fit is read a second time while the L2 still
// has it.
constexpr RowLaunch loss_and_gradient_launch(int cols, int element_size, const DeviceLimits& device) {
  if (one_warp_a_row(cols, element_size)) {
    return {32, warps_per_block, 1, cols, cols, window_bytes(cols, element_size)};
  }
  const int pack = 16 / element_size;
  const int most = device.shared_per_block - reserved_shared;
  const int half = std::min(device.shared_per_multiprocessor / 2 - reserved_shared, most);
  int cluster = 1, slice = cols;
  while (kept_by(half, element_size) < slice && device.clusters && cluster < max_cluster) {
    cluster *= 2;
    slice = static_cast<int>((static_cast<int64_t>(cols) + cluster * pack - 1) / (cluster * pack)) * pack;
  }
  int kept = std::min(slice, kept_by(half, element_size));
  const int64_t read_again = static_cast<int64_t>(slice - kept) * element_size * 2 * device.multiprocessors;
  if (read_again > device.l2 / 2) {
    kept = std::min(slice, kept_by(most, element_size));  // one block on a multiprocessor halves what L2 has to hold
  }
  const int row_bytes = window_bytes(kept, element_size);
  const int blocks = std::max(device.shared_per_multiprocessor / (row_bytes + reserved_shared), 1);
  const int share = resident_threads / blocks / 32 * 32;
  const int threads = std::max(std::min({threads_for(slice, element_size), share, max_threads}), 64);
  return {threads, 1, cluster, slice, kept, row_bytes};
}

// The gradient alone: any part of a row will do, so long rows are cut, and short ones share a block.
constexpr RowLaunch gradient_launch(int cols, int element_size) {
  if (one_warp_a_row(cols, element_size)) {
    return {32, warps_per_block, 1, cols, 0, 0};
  }
  const int slice = std::min(cols, 65536 / element_size);
  return {std::min(std::max(threads_for(slice, element_size), 64), 256), 1, 1, slice, 0, 0};
}

}  // namespace pyseq
