// How the CUDA kernels of cross-entropy spread rows, for GPUs that need not be here.
#include "cuda/cross_entropy_launch.h"
#include "tests/check.h"

using namespace pyseq;

namespace {

constexpr DeviceLimits a100{108, 164 * 1024, 163 * 1024, int64_t{40} << 20, false};
constexpr DeviceLimits h200{132, 228 * 1024, 227 * 1024, int64_t{60} << 20, true};
constexpr DeviceLimits b200{148, 228 * 1024, 227 * 1024, int64_t{126} << 20, true};
constexpr DeviceLimits rtx{128, 100 * 1024, 99 * 1024, int64_t{72} << 20, false};

constexpr int sizes[] = {1,     7,     512,   1024,  1025,  2048,   2049,   4096,   8191,    8192,    9736,
                         16384, 32000, 32768, 50257, 65536, 100000, 128256, 262144, 1000000, max_cols};

int blocks_by_shared_memory(const RowLaunch& launch, const DeviceLimits& device) {
  return device.shared_per_multiprocessor / (launch.row_bytes * launch.rows_per_block + reserved_shared);
}

void check(const RowLaunch& launch, int cols, int element_size, const DeviceLimits& device) {
  CHECK(launch.threads % 32 == 0 && launch.threads >= 32);
  CHECK(launch.threads * launch.rows_per_block <= max_threads);
  CHECK(launch.rows_per_block == 1 || launch.threads == 32);  // rows of a block share no barrier
  CHECK(int64_t{launch.slice} * launch.cluster >= cols);
  CHECK(int64_t{launch.slice} * (launch.cluster - 1) < cols);  // every block of a cluster has work
  CHECK(launch.cluster == 1 || launch.slice * element_size % 16 == 0);
  CHECK(launch.kept <= launch.slice && launch.row_bytes >= launch.kept * element_size);
  CHECK(launch.row_bytes % 16 == 0 && blocks_by_shared_memory(launch, device) >= 1);
  CHECK(launch.row_bytes * launch.rows_per_block + reserved_shared <= device.shared_per_block + 1024);
  CHECK(launch.cluster == 1 || device.clusters);
}

}  // namespace

TEST(every_launch_covers_its_row_and_fits_the_device) {
  for (const DeviceLimits& device : {a100, h200, b200, rtx}) {
    for (const int element_size : {2, 4}) {
      for (const int cols : sizes) {
        check(loss_launch(cols, element_size), cols, element_size, device);
        check(loss_and_gradient_launch(cols, element_size, device), cols, element_size, device);
        const RowLaunch gradient = gradient_launch(cols, element_size);
        CHECK(gradient.cluster == 1 && gradient.slice <= cols && gradient.slice >= 1 && gradient.row_bytes == 0);
        CHECK(gradient.slice == cols || gradient.slice * element_size % 16 == 0);
        CHECK(gradient.threads * gradient.rows_per_block <= max_threads);
      }
    }
  }
}

TEST(rows_are_read_once_and_two_blocks_share_a_multiprocessor) {
  for (const int element_size : {2, 4}) {
    for (const int cols : sizes) {
      const RowLaunch launch = loss_and_gradient_launch(cols, element_size, h200);
      if (int64_t{cols} * element_size <= 800 * 1024) {
        CHECK(launch.kept == launch.slice);
        CHECK(blocks_by_shared_memory(launch, h200) >= 2);
        CHECK(blocks_by_shared_memory(launch, h200) * launch.threads * launch.rows_per_block >= 512);
      }
    }
  }
  CHECK(loss_and_gradient_launch(32768, 2, h200).cluster == 1);
  CHECK(loss_and_gradient_launch(50257, 2, h200).cluster == 1);
  CHECK(loss_and_gradient_launch(128256, 2, h200).cluster == 4);
}

TEST(what_is_read_again_fits_into_l2) {
  for (const int cols : {50257, 65536, 128256}) {
    const RowLaunch launch = loss_and_gradient_launch(cols, 2, a100);
    const int blocks = blocks_by_shared_memory(launch, a100) * a100.multiprocessors;
    CHECK(launch.kept < launch.slice && launch.kept > 0);
    CHECK(int64_t{blocks} * (launch.slice - launch.kept) * 2 <= a100.l2 / 2);
  }
}
