// The kernel of Adam, for each combination of dtypes; included by a file for each dtype of parameters, so that they
// compile in parallel.
#pragma once

#include <type_traits>

#include "cuda/adam.h"
#include "cuda/launch.cuh"
#include "cuda/pack.cuh"
#include "math/random.h"
#include "math/remainder.h"

namespace pyseq {

// What the kernel is given; segments follow, or are on the device.
struct AdamArguments {
  const AdamSegment* device_segments;  // null: `segments`
  int count;
  bool zero_grads;
  int64_t chunks;
  AdamRule rule;
  double lr;
  CudaAdamScalars scalars;
  uint64_t seed;
  unsigned int* counter;
  AdamSegment segments[adam_inline_segments];
};
static_assert(sizeof(AdamArguments) <= 4096, "the arguments of a kernel");

namespace {

constexpr int adam_threads = 256;

// What a block knows of the step.
struct BlockStep {
  AdamStep step;
  uint32_t number;  // of the step that is being made
  bool skip;
};

__device__ inline double value_or(const float* address, double otherwise) {
  return address != nullptr ? static_cast<double>(*address) : otherwise;
}

// By one thread of each block. The last block to have read the number of steps advances it.
__device__ inline void begin_step(const AdamArguments& a, BlockStep* out) {
  const float done = *static_cast<volatile float*>(a.scalars.step);
  out->skip = value_or(a.scalars.found_inf, 0.0) != 0.0;
  out->number = static_cast<uint32_t>(done + 1.0f);
  out->step = adam_step(a.rule, done, value_or(a.scalars.lr, a.lr), value_or(a.scalars.factor, 1.0),
                        value_or(a.scalars.grad_scale, 1.0));
  if (is_last_block(a.counter) && !out->skip) {
    *a.scalars.step = done + 1.0f;
  }
}

// N numbers that lie side by side at a multiple of 16.
template <class T, int N>
struct alignas(16) Group {
  static_assert(N * sizeof(T) % 16 == 0, "a group is moved 16 bytes at a time");
  static constexpr int parts = N * sizeof(T) / 16;
  T values[N];
};

template <class T, int N>
__device__ inline Group<T, N> load_group(const T* p) {
  Group<T, N> group;
#pragma unroll
  for (int i = 0; i < Group<T, N>::parts; ++i) {
    reinterpret_cast<uint4*>(group.values)[i] = reinterpret_cast<const uint4*>(p)[i];
  }
  return group;
}

template <class T, int N>
__device__ inline void store_group(T* p, const Group<T, N>& group) {
#pragma unroll
  for (int i = 0; i < Group<T, N>::parts; ++i) {
    reinterpret_cast<uint4*>(p)[i] = reinterpret_cast<const uint4*>(group.values)[i];
  }
}

// random_word without an array that is indexed at run time: that would be local memory.
__device__ inline uint32_t word_at(RandomStream stream, uint64_t i) {
  const uint64_t number = i / random_tile_words * 16 + i % 16;
  const auto block = random_block(stream, static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32));
  const uint32_t low = i / 16 % 2 == 0 ? block.word[0] : block.word[1];
  const uint32_t high = i / 16 % 2 == 0 ? block.word[2] : block.word[3];
  return i / 32 % 2 == 0 ? low : high;
}

// The words of a random stream for 8 elements from i on; i is 8 times the lane beyond a multiple of 256. A block of the
// stream has words for four elements that lie 16 apart, so the lanes of a warp make two blocks each and exchange words.
__device__ inline Group<uint32_t, 8> random_group(RandomStream stream, int64_t i) {
  __shared__ alignas(16) uint32_t words[adam_threads * 8];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t* const mine = words + threadIdx.x / 32 * 256;
  const uint64_t tile = static_cast<uint64_t>(i) / random_tile_words;
  const int block = lane % 8 * 2;  // in the tile, which eight lanes share
  RandomBlock<uint32_t> made[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint64_t number = tile * 16 + static_cast<uint64_t>(block + k);
    made[k] = random_block(stream, static_cast<uint32_t>(number), static_cast<uint32_t>(number >> 32));
  }
  __syncwarp();  // the words before have been read
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    *reinterpret_cast<uint2*>(mine + lane / 8 * random_tile_words + n * 16 + block) =
        make_uint2(made[0].word[n], made[1].word[n]);
  }
  __syncwarp();
  return load_group<uint32_t, 8>(mine + lane * 8);
}

// The update of elements whose parameters are P, gradients G, moments S; X is float (masters), uint16_t (remainders) or
// void.
template <class P, class G, class S, class X>
struct Adam {
  static constexpr bool has_extra = !std::is_void<X>::value;
  static constexpr bool stochastic = !std::is_same<S, float>::value;
  using Extra = typename std::conditional<has_extra, X, P>::type;
  static constexpr int least_bytes = sizeof(G) < sizeof(P) ? sizeof(G) : sizeof(P);
  static constexpr int group = least_bytes < 4 || sizeof(S) < 4 ? 8 : 4;
  static constexpr int groups = adam_chunk / (group * adam_threads);  // of a thread in a chunk
  static constexpr int resident = group == 8 ? 2 : 3;                 // blocks: more would leave too few registers

  const AdamSegment& segment;
  const BlockStep& now;
  const RandomStream stream;
  const bool zero_grads;

  template <class T>
  __device__ static T* column(void* address) {
    return static_cast<T*>(address);
  }

  __device__ static float load_param(P param, Extra extra) {
    if constexpr (!has_extra) {
      return to_float(param);
    } else if constexpr (std::is_same<X, float>::value) {
      return extra;
    } else {
      return __uint_as_float(join_master(SplitMaster<uint32_t>{__bfloat16_as_ushort(param), extra}));
    }
  }

  __device__ static void store_param(float value, P* param, Extra* extra) {
    if constexpr (!has_extra) {
      *param = from_float<P>(value);
    } else if constexpr (std::is_same<X, float>::value) {
      *param = from_float<P>(value);
      *extra = value;
    } else {
      const SplitMaster<uint32_t> split = split_master(__float_as_uint(value));
      *param = __ushort_as_bfloat16(static_cast<unsigned short>(split.high));
      *extra = static_cast<uint16_t>(split.low);
    }
  }

  __device__ static S round_state(float value, uint32_t random16) {
    if constexpr (stochastic) {
      return __ushort_as_bfloat16(
          static_cast<unsigned short>(round_stochastically(__float_as_uint(value), random16)));
    } else {
      return value;
    }
  }

  // One element, in registers; `random` are its 32 bits. (A null `max` instead of `amsgrad` would cost it its register.)
  __device__ void update(bool amsgrad, uint32_t random, float grad, P* param, Extra* extra, S* exp_avg, S* exp_avg_sq,
                         S* max) const {
    float p = load_param(*param, *extra);
    float m = to_float(*exp_avg);
    float v = to_float(*exp_avg_sq);
    if (!amsgrad) {
      adam_update<float>(now.step, adam_terms(now.step), grad, &p, &m, &v, nullptr);
      *exp_avg_sq = round_state(v, random >> 16);
    } else {
      const float before = to_float(*max);
      float largest = before;
      adam_update<float>(now.step, adam_terms(now.step), grad, &p, &m, &v, &largest);
      *exp_avg_sq = round_state(v, random >> 16);
      *max = stochastic ? from_float<S>(larger(before, to_float(*exp_avg_sq))) : from_float<S>(largest);
    }
    *exp_avg = round_state(m, random & 0xffffu);
    store_param(p, param, extra);
  }

  __device__ void update_one(int64_t i) const {
    P* const param = column<P>(segment.param) + i;
    Extra* const extra = has_extra ? column<Extra>(segment.extra) + i : nullptr;
    S* const exp_avg = column<S>(segment.exp_avg) + i;
    S* const exp_avg_sq = column<S>(segment.exp_avg_sq) + i;
    S* const max = segment.max_exp_avg_sq != nullptr ? column<S>(segment.max_exp_avg_sq) + i : nullptr;
    G* const grad = column<G>(segment.grad) + i;
    P p = *param;
    Extra x = has_extra ? *extra : Extra{};
    S m = *exp_avg, v = *exp_avg_sq;
    S most = max != nullptr ? *max : S{};
    uint32_t random = 0;
    if constexpr (stochastic) {
      random = word_at(stream, static_cast<uint64_t>(i));
    }
    update(max != nullptr, random, to_float(*grad), &p, &x, &m, &v, &most);
    *param = p;
    *exp_avg = m;
    *exp_avg_sq = v;
    if (has_extra) {
      *extra = x;
    }
    if (max != nullptr) {
      *max = most;
    }
    if (zero_grads) {
      *grad = from_float<G>(0.0f);
    }
  }

  // `amsgrad` is known when this is compiled, so that its numbers take no registers where it is not.
  template <bool amsgrad>
  __device__ void update_group(int64_t i, const Group<uint32_t, group>& random) const {
    P* const param = column<P>(segment.param) + i;
    Extra* const extra = has_extra ? column<Extra>(segment.extra) + i : nullptr;
    S* const exp_avg = column<S>(segment.exp_avg) + i;
    S* const exp_avg_sq = column<S>(segment.exp_avg_sq) + i;
    S* const max = amsgrad ? column<S>(segment.max_exp_avg_sq) + i : nullptr;
    G* const grad = column<G>(segment.grad) + i;
    auto g = load_group<G, group>(grad);
    auto p = load_group<P, group>(param);
    Group<Extra, group> x;
    Group<S, group> most;
    if constexpr (has_extra) {
      x = load_group<Extra, group>(extra);
    }
    auto m = load_group<S, group>(exp_avg);
    auto v = load_group<S, group>(exp_avg_sq);
    if constexpr (amsgrad) {
      most = load_group<S, group>(max);
    }
#pragma unroll
    for (int k = 0; k < group; ++k) {
      update(amsgrad, random.values[k], to_float(g.values[k]), &p.values[k], &x.values[k], &m.values[k], &v.values[k],
             &most.values[k]);
    }
    store_group(param, p);
    store_group(exp_avg, m);
    store_group(exp_avg_sq, v);
    if constexpr (has_extra) {
      store_group(extra, x);
    }
    if constexpr (amsgrad) {
      store_group(max, most);
    }
    if (zero_grads) {
      store_group(grad, Group<G, group>{});
    }
  }

  // The elements [begin, end), which are at most a chunk: groups of aligned ones, and the rest one by one.
  __device__ void update_range(int64_t begin, int64_t end) const {
    const int head = segment.head;
    int64_t aligned = end, aligned_end = end;
    if (stochastic ? head == 0 : head >= 0) {
      aligned = begin + (head - begin % group + group) % group;
      aligned = aligned < end ? aligned : end;
      aligned_end = aligned + (end - aligned) / group * group;
    }
    if (segment.max_exp_avg_sq == nullptr) {
      update_groups<false>(aligned, aligned_end);
    } else {
      update_groups<true>(aligned, aligned_end);
    }
    const int64_t before = aligned - begin;
#pragma unroll 1
    for (int64_t k = threadIdx.x; k < before + (end - aligned_end); k += adam_threads) {
      update_one(k < before ? begin + k : aligned_end + (k - before));
    }
  }

  template <bool amsgrad>
  __device__ void update_groups(int64_t begin, int64_t end) const {
    const int64_t mine = begin + static_cast<int64_t>(threadIdx.x) * group;
#pragma unroll
    for (int k = 0; k < groups; ++k) {
      const int64_t i = mine + k * adam_threads * group;
      Group<uint32_t, group> random;
      if constexpr (stochastic) {
        random = random_group(stream, i);  // of all threads of a warp, whether their elements are there or not
      }
      if (i < end) {
        update_group<amsgrad>(i, random);
      }
    }
  }
};

template <class P, class G, class S, class X>
__global__ void __launch_bounds__(adam_threads, Adam<P, G, S, X>::resident) adam_kernel(const __grid_constant__ AdamArguments a) {
  __shared__ BlockStep now;
  if (threadIdx.x == 0) {
    begin_step(a, &now);
  }
  __syncthreads();
  if (now.skip && !a.zero_grads) {
    return;
  }
  const AdamSegment* segments = a.device_segments != nullptr ? a.device_segments : a.segments;
  for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
    const AdamSegment& segment = segments[find_row(segments, a.count, chunk)];
    const int64_t begin = (chunk - segment.first) * adam_chunk;
    const int64_t end = begin + adam_chunk < segment.numel ? begin + adam_chunk : segment.numel;
    if (now.skip) {
      G* const grad = static_cast<G*>(segment.grad);
      for (int64_t i = begin + threadIdx.x; i < end; i += adam_threads) {
        grad[i] = from_float<G>(0.0f);
      }
    } else {
      const uint64_t number = static_cast<uint64_t>(now.number) << 32 | static_cast<uint32_t>(segment.key);
      Adam<P, G, S, X>{segment, now, {a.seed, number}, a.zero_grads}.update_range(begin, end);
    }
  }
}

template <class P, class G, class S, class X>
cudaError_t launch_kernel(const AdamArguments& a, cudaStream_t stream) {
  int blocks = 0;
  const cudaError_t error = persistent_grid(adam_kernel<P, G, S, X>, adam_threads, a.chunks, &blocks);
  if (error != cudaSuccess) {
    return error;
  }
  adam_kernel<P, G, S, X><<<blocks, adam_threads, 0, stream>>>(a);
  return cudaGetLastError();
}

template <class P, class G, class X>
cudaError_t launch_with_state(int state, const AdamArguments& a, cudaStream_t stream) {
  return state == 0 ? launch_kernel<P, G, float, X>(a, stream) : launch_kernel<P, G, __nv_bfloat16, X>(a, stream);
}

template <class P, class G>
cudaError_t launch_with_extra(const CudaAdamDtypes& dtypes, const AdamArguments& a, cudaStream_t stream) {
  if constexpr (!std::is_same<P, float>::value) {
    if (dtypes.extra == CudaExtra::master) {
      return launch_with_state<P, G, float>(dtypes.state, a, stream);
    }
  }
  if constexpr (std::is_same<P, __nv_bfloat16>::value) {
    if (dtypes.extra == CudaExtra::remainder) {
      return launch_with_state<P, G, uint16_t>(dtypes.state, a, stream);
    }
  }
  return launch_with_state<P, G, void>(dtypes.state, a, stream);
}

}  // namespace

// For dtypes that cuda_adam_takes, with parameters of fp32, bf16 and fp16.
cudaError_t launch_adam_f32(const CudaAdamDtypes& dtypes, const AdamArguments& a, cudaStream_t stream);
cudaError_t launch_adam_bf16(const CudaAdamDtypes& dtypes, const AdamArguments& a, cudaStream_t stream);
cudaError_t launch_adam_f16(const CudaAdamDtypes& dtypes, const AdamArguments& a, cudaStream_t stream);

}  // namespace pyseq
