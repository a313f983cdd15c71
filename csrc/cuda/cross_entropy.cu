// Softmax cross-entropy: the launches of cross_entropy_kernels.cuh.
#include "cuda/cross_entropy.h"

#include <algorithm>
#include <climits>

#include "cuda/cross_entropy_kernels.cuh"

namespace pyseq {
namespace {

cudaError_t limits_of_device(DeviceLimits& limits) {
  int device = 0, l2 = 0, major = 0;
  const auto read = [&device](int& value, cudaDeviceAttr attribute) {
    return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  };
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     read(limits.multiprocessors, cudaDevAttrMultiProcessorCount) &&
                     read(limits.shared_per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor) &&
                     read(limits.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin) &&
                     read(l2, cudaDevAttrL2CacheSize) && read(major, cudaDevAttrComputeCapabilityMajor);
  limits.l2 = l2;
  limits.clusters = major == 9 || major == 10;  // built for these
  return known ? cudaSuccess : cudaGetLastError();
}

// What a launch is made of; rows gets its shape.
template <class T>
cudaError_t shaped(Rows<T>& rows, const RowLaunch& shape, int64_t& blocks) {
  rows.slice = shape.slice;
  rows.slices = static_cast<unsigned>((rows.cols + shape.slice - 1) / shape.slice);
  rows.kept = shape.kept;
  rows.row_bytes = shape.row_bytes;
  blocks = (rows.rows + shape.rows_per_block - 1) / shape.rows_per_block * rows.slices;
  return blocks > INT_MAX ? cudaErrorInvalidValue : cudaSuccess;
}

dim3 block_of(const RowLaunch& shape) {
  return {static_cast<unsigned>(shape.threads), static_cast<unsigned>(shape.rows_per_block), 1};
}

template <class T>
cudaError_t launch(void (*kernel)(Rows<T>), Rows<T> rows, const RowLaunch& shape, cudaStream_t stream) {
  int64_t blocks = 0;
  cudaError_t error = shaped(rows, shape, blocks);
  const int bytes = shape.row_bytes * shape.rows_per_block;
  if (error == cudaSuccess && bytes > 0) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  }
  if (error == cudaSuccess && bytes > 0) {
    // As much shared memory as there is: by default a multiprocessor may set aside enough for one block only.
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  }
  if (error != cudaSuccess) {
    return error;
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = block_of(shape);
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, rows);
}

template <class T>
Rows<T> rows_of(const CudaCrossEntropy& input) {
  Rows<T> rows{};
  rows.logits = static_cast<const T*>(input.logits);
  rows.target = input.target;
  rows.class_weight = input.class_weight;
  rows.weight_total = input.weight_total;
  rows.rows = input.rows;
  rows.row_stride = input.row_stride;
  rows.ignore_index = input.ignore_index;
  rows.cols = static_cast<int>(input.cols);
  rows.rule = input.rule;
  return rows;
}

Options options_of(const CudaCrossEntropy& input) {
  if (input.class_weight != nullptr || input.rule.soft_cap != 0.0f) {
    return Options::all;
  }
  return input.rule.smooth == 0.0 ? Options::plain : Options::smoothed;
}

template <class T>
cudaError_t launch_rows(const Rows<T>& rows, const RowLaunch& shape, Options options, cudaStream_t stream) {
  switch (options) {
    case Options::plain:
      return launch(rows_kernel<T, Options::plain>, rows, shape, stream);
    case Options::smoothed:
      return launch(rows_kernel<T, Options::smoothed>, rows, shape, stream);
    default:
      return launch(rows_kernel<T, Options::all>, rows, shape, stream);
  }
}

// Calls f with an element of the dtype. There is nothing to do without rows or classes.
template <class F>
cudaError_t with_dtype(const CudaCrossEntropy& input, F&& f) {
  if (input.rows == 0 || input.cols == 0) {
    return cudaSuccess;
  }
  if (input.cols > max_cols) {
    return cudaErrorInvalidValue;
  }
  switch (input.dtype) {
    case 0:
      return f(float{});
    case 1:
      return f(__nv_bfloat16{});
    case 2:
      return f(__half{});
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t cuda_cross_entropy_loss(const CudaCrossEntropy& input, const CudaRowResults& results) {
  return with_dtype(input, [&](auto element) {
    using T = decltype(element);
    Rows<T> rows = rows_of<T>(input);
    rows.results = results;
    return launch_rows(rows, loss_launch(rows.cols, sizeof(T)), options_of(input), input.stream);
  });
}

cudaError_t cuda_cross_entropy_loss_and_gradient(const CudaCrossEntropy& input, const RowWeighting& weighting,
                                                 const CudaRowResults& results, const CudaGradient& gradient) {
  return with_dtype(input, [&](auto element) {
    using T = decltype(element);
    DeviceLimits device{};
    const cudaError_t error = limits_of_device(device);
    Rows<T> rows = rows_of<T>(input);
    rows.weighting = weighting;
    rows.results = results;
    rows.grad = static_cast<T*>(gradient.data);
    rows.grad_stride = gradient.row_stride;
    const RowLaunch shape = loss_and_gradient_launch(rows.cols, sizeof(T), device);
    return error == cudaSuccess ? launch_rows(rows, shape, options_of(input), input.stream) : error;
  });
}

cudaError_t cuda_cross_entropy_gradient(const CudaCrossEntropy& input, const float* stats,
                                        const RowWeighting& weighting, const CudaGradient& gradient) {
  return with_dtype(input, [&](auto element) {
    using T = decltype(element);
    Rows<T> rows = rows_of<T>(input);
    rows.weighting = weighting;
    rows.stats = stats;
    rows.grad = static_cast<T*>(gradient.data);
    rows.grad_stride = gradient.row_stride;
    const RowLaunch shape = gradient_launch(rows.cols, sizeof(T));
    const bool all = options_of(input) == Options::all;  // smoothing costs the gradient nothing
    return all ? launch(gradient_kernel<T, Options::all>, rows, shape, input.stream)
               : launch(gradient_kernel<T, Options::plain>, rows, shape, input.stream);
  });
}

cudaError_t cuda_cross_entropy_scale(const CudaCrossEntropy& input, const float* factor, const CudaGradient& gradient) {
  return with_dtype(input, [&](auto element) {
    using T = decltype(element);
    DeviceLimits device{};
    cudaError_t error = limits_of_device(device);
    Rows<T> rows = rows_of<T>(input);
    rows.weighting = {factor, 0, 0.0f};
    rows.grad = static_cast<T*>(gradient.data);
    rows.grad_stride = gradient.row_stride;
    const RowLaunch shape = gradient_launch(rows.cols, sizeof(T));
    int64_t items = 0;
    error = error == cudaSuccess ? shaped(rows, shape, items) : error;
    if (error != cudaSuccess) {
      return error;
    }
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(items, 8 * device.multiprocessors));
    scale_kernel<T><<<blocks, block_of(shape), 0, input.stream>>>(rows, items);
    return cudaGetLastError();
  });
}

}  // namespace pyseq
