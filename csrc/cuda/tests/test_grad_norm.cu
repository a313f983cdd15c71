#include <cmath>

#include "cuda/grad_norm.h"
#include "cuda/table_upload.h"
#include "cuda/tests/device_memory.h"
#include "cuda/tests/dtypes.h"
#include "math/grad_norm.h"

using namespace pyseq;

namespace {

struct NormTensor {
  int dtype;
  size_t numel;
  size_t shift;  // elements
  double scale;
};

struct NormInput {
  std::vector<DeviceMemory> memory;
  std::vector<int64_t> table;
  double squares = 0.0;  // in fp64, of the numbers as they are stored
};

NormInput input_of(const std::vector<NormTensor>& tensors) {
  NormInput input;
  Numbers numbers(static_cast<uint32_t>(tensors.size()));
  for (const NormTensor& tensor : tensors) {
    const size_t size = element_size(tensor.dtype);
    std::vector<uint8_t> host(tensor.numel * size);
    for (size_t i = 0; i < tensor.numel; ++i) {
      set_number(&host, tensor.dtype, i, tensor.scale * numbers.next());
      const double x = number_at(host, tensor.dtype, i);
      input.squares += x * x;
    }
    input.memory.emplace_back(host, tensor.shift * size);
    input.table.insert(input.table.end(), {reinterpret_cast<int64_t>(input.memory.back().data()),
                                           static_cast<int64_t>(tensor.numel), tensor.dtype});
  }
  return input;
}

struct NormResult {
  double squares;
  GradNorm norm;
};

NormResult run(const std::vector<int64_t>& rows, double max_norm, double scale, const float* scale_on_device,
               const DeviceWorkspace& workspace) {
  const auto count = static_cast<int64_t>(rows.size() / 3);
  std::vector<NormSegment> segments(rows.size() / 3 + 1);
  CudaGradNorm input{};
  input.segments = segments.data();
  input.table = norm_segments(rows.data(), count, segments.data());
  DeviceMemory table(segments.size() * sizeof(NormSegment));
  if (input.table.count > norm_inline_segments) {
    CHECK_CUDA(upload_table(table.data(), segments.data(), static_cast<size_t>(input.table.count) * sizeof(NormSegment),
                            nullptr));
    input.device_segments = table.data<const NormSegment>();
  }
  DeviceNumber<double> squares(-1.0);
  DeviceNumber<GradNorm> result({-1.0f, -1.0f, -1.0f});
  input.scale = scale;
  input.scale_on_device = scale_on_device;
  input.max_norm = max_norm;
  input.workspace = workspace.data();
  input.squares = squares.data();
  input.result = &result.data()->norm;
  CHECK_CUDA(cuda_grad_norm(input, nullptr));
  return {squares.get(), result.get()};
}

bool near(double a, double b, double relative) { return std::fabs(a - b) <= relative * std::fabs(b); }

void check_norm(const std::vector<NormTensor>& tensors) {
  const DeviceWorkspace workspace;
  const NormInput input = input_of(tensors);
  const DeviceNumber<float> scale(0.25f);
  const NormResult first = run(input.table, 1.5, -7.0, scale.data(), workspace);
  CHECK(near(first.squares, input.squares, 1e-7));
  const GradNorm want = grad_norm(first.squares, 0.25, 1.5);
  CHECK(first.norm.norm == want.norm && first.norm.factor == want.factor && first.norm.found_inf == want.found_inf);
  for (int again = 0; again < 3; ++again) {  // the counter is back at 0, and the bits are the same
    const NormResult other = run(input.table, -1.0, 2.0, nullptr, workspace);
    CHECK(other.squares == first.squares && other.norm.factor == 2.0f);
  }
}

}  // namespace

TEST(norm_of_odd_sizes) {
  for (const size_t numel : {0, 1, 3, 4, 5, 7, 8, 9, 31, 4095, 4096, 4097, 8191, 100003}) {
    for (int dtype = 0; dtype < 4; ++dtype) {
      for (const size_t shift : {0, 1, 3}) {
        check_norm({{dtype, numel, shift, 1.0}});
      }
    }
  }
}

TEST(norm_of_nothing) {
  check_norm({});
}

TEST(norm_of_many_tensors_of_all_dtypes) {
  for (const size_t count : {7, 99, 101, 700}) {  // as arguments and as a table, which takes one or more launches
    std::vector<NormTensor> tensors;
    for (size_t i = 0; i < count; ++i) {
      tensors.push_back({static_cast<int>(i % 4), (i * 37) % 301, i % 3, 1.0});
    }
    check_norm(tensors);
  }
}

TEST(norm_beyond_the_squares_of_fp32) {
  for (const double scale : {1e30, 1e-30, 1e19, 1e-22}) {
    check_norm({{0, 1000, 0, scale}, {1, 1000, 0, scale}, {1, 1000, 1, 1e-38}});
  }
}

TEST(norm_does_not_depend_on_where_tensors_lie) {
  const DeviceWorkspace workspace;
  const NormInput aligned = input_of({{0, 5000, 0, 1.0}, {1, 3000, 0, 1.0}});
  const NormInput shifted = input_of({{0, 5000, 1, 1.0}, {1, 3000, 5, 1.0}});
  CHECK(run(aligned.table, -1.0, 1.0, nullptr, workspace).squares ==
        run(shifted.table, -1.0, 1.0, nullptr, workspace).squares);
  // One tensor as three that follow each other, which are merged again.
  const NormInput whole = input_of({{0, 12288, 0, 1.0}});
  std::vector<int64_t> parts;
  for (int64_t part = 0; part < 3; ++part) {
    parts.insert(parts.end(), {whole.table[0] + part * 4096 * 4, 4096, 0});
  }
  CHECK(run(parts, -1.0, 1.0, nullptr, workspace).squares == run(whole.table, -1.0, 1.0, nullptr, workspace).squares);
}

TEST(norm_that_is_not_finite) {
  const DeviceWorkspace workspace;
  for (const double bad : {static_cast<double>(INFINITY), static_cast<double>(NAN)}) {
    for (int dtype = 0; dtype < 4; ++dtype) {
      std::vector<uint8_t> host(10000 * element_size(dtype));
      set_number(&host, dtype, 9876, bad);
      const DeviceMemory memory(host);
      const NormResult got =
          run({reinterpret_cast<int64_t>(memory.data()), 10000, dtype}, 1.0, 1.0, nullptr, workspace);
      CHECK(got.norm.found_inf == 1.0f);
    }
  }
}
