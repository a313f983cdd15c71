// A block adds up tiles, one after the other: a thread the squares of four packs of 16 bytes in each. Sums are fp64 from
// the pack on, and fixed: packs to threads, threads to a block, blocks to the total, which the last block adds up.
#include "cuda/grad_norm.h"

#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "math/grad_norm.h"

namespace pyseq {
namespace {

constexpr int threads = 256;
constexpr int unroll = 4;  // loads in flight: 64 bytes a thread
constexpr int tile = threads * unroll;

struct Arguments {
  const NormSegment* device_segments;  // null: `segments`
  int count;
  int64_t packs;
  double scale;
  const float* scale_on_device;
  double max_norm;
  Workspace* workspace;
  double* squares;
  float* result;
  NormSegment segments[norm_inline_segments];
};

__device__ inline double to_double(double value) { return value; }
template <class T>
__device__ inline double to_double(T value) {
  return static_cast<double>(to_float(value));
}

template <class T>
__device__ inline double square_sum_in_double(const Pack<T>& pack) {
  double sum = 0.0;
#pragma unroll
  for (int i = 0; i < Pack<T>::size; ++i) {
    const double x = to_double(pack.values[i]);
    sum = ::fma(x, x, sum);
  }
  return sum;
}

// Squares of 4- and 8-byte numbers are added in fp64, where those of fp32 are exact. Of 16-bit numbers they are exact in
// fp32 too, which is faster; but bf16 has squares beyond the range of fp32 and so small that bits are lost.
template <class T>
__device__ inline double square_sum(const Pack<T>& pack) {
  if constexpr (sizeof(T) > 2) {
    return square_sum_in_double(pack);
  } else {
    constexpr float least = 7.8886091e-31f;   // 2^-100: what vanishes beside it is below fp32's rounding
    constexpr float most = 1.2676506e+30f;    // 2^100
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Pack<T>::size; ++i) {
      const float x = to_float(pack.values[i]);
      sum = ::fmaf(x, x, sum);
    }
    return sum >= least && sum <= most ? static_cast<double>(sum) : square_sum_in_double(pack);
  }
}

// Pack number k of a segment. Beyond the end there are zeros.
template <class T>
__device__ inline Pack<T> pack_of(const NormSegment& segment, int64_t k) {
  const T* x = static_cast<const T*>(segment.data);
  const int64_t begin = k * Pack<T>::size;
  if (segment.vector && begin + Pack<T>::size <= segment.numel) {
    return load_pack(x + begin);
  }
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < Pack<T>::size; ++i) {
    pack.values[i] = begin + i < segment.numel ? x[begin + i] : T(0.0f);
  }
  return pack;
}

// `sum` and the squares of the part of a segment that lies in the tile which begins with pack `begin`.
template <class T>
__device__ inline double add_tile(const NormSegment& segment, int64_t begin, double sum) {
  const int64_t offset = begin - segment.first;
  const int64_t mine = offset + static_cast<int64_t>(threadIdx.x);
  if (segment.vector && offset >= 0 && (offset + tile) * Pack<T>::size <= segment.numel) {
    const T* x = static_cast<const T*>(segment.data) + mine * Pack<T>::size;
    Pack<T> packs[unroll];
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      packs[u] = load_pack(x + static_cast<int64_t>(u) * threads * Pack<T>::size);
    }
#pragma unroll
    for (int u = 0; u < unroll; ++u) {
      sum += square_sum(packs[u]);
    }
    return sum;
  }
#pragma unroll 1
  for (int u = 0; u < unroll; ++u) {
    const int64_t k = mine + u * threads;
    if (k >= 0 && k * Pack<T>::size < segment.numel) {
      sum += square_sum(pack_of<T>(segment, k));
    }
  }
  return sum;
}

__device__ inline double add_tile_of_any(const NormSegment& segment, int64_t begin, double sum) {
  switch (segment.dtype) {
    case 0:
      return add_tile<float>(segment, begin, sum);
    case 1:
      return add_tile<__nv_bfloat16>(segment, begin, sum);
    case 2:
      return add_tile<__half>(segment, begin, sum);
    default:
      return add_tile<double>(segment, begin, sum);
  }
}

// The sum over the threads of a block, in a fixed order; known to thread 0.
__device__ inline double block_sum(double sum) {
  __shared__ double warps[threads / 32];
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, lanes);
  }
  __syncthreads();  // what was read from `warps` before is read
  if (threadIdx.x % 32 == 0) {
    warps[threadIdx.x / 32] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < threads / 32; ++warp) {
      sum += warps[warp];
    }
  }
  return sum;
}

__device__ inline void finish(const Arguments& a, double squares) {
  if (a.squares != nullptr) {
    *a.squares = squares;
  }
  if (a.result != nullptr) {
    const double scale = a.scale_on_device != nullptr ? static_cast<double>(*a.scale_on_device) : a.scale;
    const GradNorm norm = grad_norm(squares, scale, a.max_norm);
    a.result[0] = norm.norm;
    a.result[1] = norm.factor;
    a.result[2] = norm.found_inf;
  }
}

__global__ void __launch_bounds__(threads, 4) grad_norm_kernel(const __grid_constant__ Arguments a) {
  const NormSegment* segments = a.device_segments != nullptr ? a.device_segments : a.segments;
  double sum = 0.0;
  for (int64_t begin = static_cast<int64_t>(blockIdx.x) * tile; begin < a.packs;
       begin += static_cast<int64_t>(gridDim.x) * tile) {
    for (int s = find_row(segments, a.count, begin); s < a.count && segments[s].first < begin + tile; ++s) {
      sum = add_tile_of_any(segments[s], begin, sum);
    }
  }
  sum = block_sum(sum);
  __shared__ bool last;
  if (threadIdx.x == 0) {
    a.workspace->partial[blockIdx.x] = sum;
    last = is_last_block(&a.workspace->norm_counter);
  }
  __syncthreads();
  if (last) {
    double total = 0.0;
    for (unsigned int block = threadIdx.x; block < gridDim.x; block += threads) {
      total += __ldcg(&a.workspace->partial[block]);  // from L2, where the other blocks have written it
    }
    total = block_sum(total);
    if (threadIdx.x == 0) {
      finish(a, total);
    }
  }
}

}  // namespace

cudaError_t cuda_grad_norm(const CudaGradNorm& input, cudaStream_t stream) {
  Arguments a{};
  a.count = input.table.count;
  a.packs = input.table.packs;
  a.scale = input.scale;
  a.scale_on_device = input.scale_on_device;
  a.max_norm = input.max_norm;
  a.workspace = static_cast<Workspace*>(input.workspace);
  a.squares = input.squares;
  a.result = input.result;
  if (a.count > norm_inline_segments) {
    if (input.device_segments == nullptr) {
      return cudaErrorInvalidValue;
    }
    a.device_segments = input.device_segments;
  } else {
    std::copy_n(input.segments, a.count, a.segments);
  }
  int blocks = 0;
  const cudaError_t error = persistent_grid(grad_norm_kernel, threads, (a.packs + tile - 1) / tile, &blocks);
  if (error != cudaSuccess) {
    return error;
  }
  grad_norm_kernel<<<blocks, threads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace pyseq
