// The kernels of cross_entropy.cu: what is read and written, by whom, and in which order. The rule is in
// math/cross_entropy.h, the shapes of launches are in cross_entropy_launch.h.
//
// Loss and gradient need a row twice, once for its sums and once for the gradient. Its bytes pass the memory bus once
// each way if the second look finds them in shared memory. Elements cost about 14 instructions and two exponentials,
// half of what a multiprocessor can do in the time that memory takes; so there is one pass for maximum and sums (a
// running maximum, moved once for a batch of 16-byte loads) and no division, branch or double in it. Doubles appear
// once a row.
#pragma once

#include <cooperative_groups.h>

#include "cuda/cross_entropy.h"
#include "cuda/cross_entropy_launch.h"
#include "cuda/cross_entropy_rows.cuh"

namespace pyseq {
namespace {

template <class T>
struct Rows {
  const T* logits;
  T* grad;  // null: only the losses are wanted
  const int64_t* target;
  const float* class_weight;
  const double* weight_total;
  RowWeighting weighting;
  CudaRowResults results;
  const float* stats;  // what the losses left behind, for a gradient on its own
  int64_t rows;
  int64_t row_stride;
  int64_t grad_stride;
  int64_t ignore_index;
  int cols;
  unsigned slices;  // of a row, and the elements of one: a block's work
  int slice;
  int kept;
  int row_bytes;
  LossRule rule;

  __device__ float grad_loss(int64_t row) const {
    return weighting.of_row == nullptr ? weighting.uniform : weighting.of_row[row * weighting.stride];
  }
  __device__ RowWeights weights_of(int64_t y) const {
    if (class_weight == nullptr) {
      return {1.0, static_cast<double>(cols)};
    }
    return {static_cast<double>(class_weight[y]), *weight_total};
  }
  template <Options options>
  __device__ Elements<options> elements(int begin) const {
    return {class_weight == nullptr ? nullptr : class_weight + begin, rule.soft_cap, 1.0f / rule.soft_cap};
  }
  __device__ bool is_class(int64_t y) const { return y >= 0 && y < cols; }
};

__device__ inline void synchronize(bool whole_block) {
  if (whole_block) {
    __syncthreads();
  } else {
    __syncwarp();
  }
}

// Elements of a slice that are still in shared memory; `kept` ends between two packs, or after the row.
template <class T>
struct Kept {
  T* elements = nullptr;  // of the row, at its own alignment within 16 bytes
  int count = 0;

  __device__ Kept() {}
  __device__ Kept(char* memory, const Layout<T>& layout, int count_wanted, int count_all) {
    const int before = layout.head == 0 ? 0 : Pack<T>::size - layout.head;
    elements = reinterpret_cast<T*>(memory) + before;
    const int packs = (count_wanted - layout.head) / Pack<T>::size;
    count = count_wanted >= count_all ? count_all : count_wanted < layout.head ? 0 : layout.at(packs);
  }
};

// The sums of a slice as one thread sees them; what is kept goes to shared memory on the way.
template <class T, Options options>
__device__ inline Part scan(const T* x, const Layout<T>& layout, const Kept<T>& kept, bool keep,
                            const Elements<options>& elements, int thread, int threads) {
  constexpr int size = Pack<T>::size, batch = pyseq::batch<options>;
  Scan<T, options> sums{elements};
  const int edge = layout.edge(thread);
  struct {
    T values[1];
  } alone[1];
  alone[0].values[0] = edge < 0 ? from_float<T>(0.0f) : x[edge];  // early: its latency passes with that of the packs
  const int step = threads * size, end = layout.end();
  for (int i = layout.at(thread); i < end; i += batch * step) {
    Pack<T> packs[batch];
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      const int j = i + u * step;
      if (j < end) {
        packs[u] = keep && j >= kept.count ? load_to_stay(x + j) : load_once(x + j);
      }
    }
    if (keep) {
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        const int j = i + u * step;
        if (j < end && j < kept.count) {
          *reinterpret_cast<uint4*>(kept.elements + j) = *reinterpret_cast<const uint4*>(&packs[u]);
        }
      }
    }
    sums.template add<batch, size>(packs, i, step, end);
  }
  if (edge >= 0) {
    if (keep && edge < kept.count) {
      kept.elements[edge] = alone[0].values[0];
    }
    sums.template add<1, 1>(alone, edge, 1, edge + 1);
  }
  return sums.part();
}

// Writes a thread's share of the gradient of a slice. Packs are aligned for the store; they are so for the load too
// unless the rows of the two matrices begin differently.
template <bool any_kept, class T, Options options>
__device__ inline void write_gradient(const T* x, T* out, int count, const Kept<T>& kept, const Gradient& rule,
                                      const Elements<options>& elements, int thread, int threads) {
  constexpr int size = Pack<T>::size, batch = pyseq::batch<options>;
  const Layout<T> layout(out, count);
  const float shift = finite_shift(rule.max);
  const bool aligned = (reinterpret_cast<uintptr_t>(x) - reinterpret_cast<uintptr_t>(out)) % 16 == 0;
  const auto at = [&](T logit, int i) {
    const float z = elements.capped(to_float(logit));
    const float p = exp_of(z - shift);
    if constexpr (options == Options::all) {
      const float slope = elements.soft_cap == 0.0f ? 1.0f : cap_slope(z * elements.inverse_cap, 1.0f);
      return slope * fmaf(p, rule.scale, -rule.offset * elements.weight(i));
    }
    return fmaf(p, rule.scale, -rule.offset);
  };
  const int step = threads * size, end = layout.end();
  for (int i = layout.at(thread); i < end; i += batch * step) {
    Pack<T> packs[batch];
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      const int j = i + u * step;
      if (any_kept && j + size <= kept.count && j < end) {
        packs[u] = aligned ? load_pack(kept.elements + j) : load_unaligned(kept.elements + j);
      } else if (j < end) {
        packs[u] = aligned ? load_last(x + j) : load_unaligned(x + j);
      }
    }
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      const int j = i + u * step;
      if (j < end) {
#pragma unroll
        for (int k = 0; k < size; ++k) {
          packs[u].values[k] = from_float<T>(at(packs[u].values[k], j + k));
        }
        store_pack(out + j, packs[u]);
      }
    }
  }
  const int edge = layout.edge(thread);
  if (edge >= 0) {
    out[edge] = from_float<T>(at(any_kept && edge < kept.count ? kept.elements[edge] : x[edge], edge));
  }
}

// Ignored rows are zeros by selection: their logits, and what they are weighted with, may be inf or nan.
template <class T>
__device__ inline void write_zeros(T* out, int count, int thread, int threads) {
  const Layout<T> layout(out, count);
  const uint4 zeros{0, 0, 0, 0};
  for (int pack = thread; pack < layout.packs; pack += threads) {
    store_pack(out + layout.at(pack), *reinterpret_cast<const Pack<T>*>(&zeros));
  }
  const int edge = layout.edge(thread);
  if (edge >= 0) {
    out[edge] = from_float<T>(0.0f);
  }
}

template <class T>
__device__ inline void write_ignored(const Rows<T>& rows, int64_t r, int begin, int count, int thread, int threads) {
  if (rows.grad != nullptr) {
    write_zeros(rows.grad + r * rows.grad_stride + begin, count, thread, threads);
  }
  if (thread == 0 && begin == 0) {
    rows.results.loss[r] = rows.results.nll[r] = 0.0f;
    rows.results.correct[r] = 0;
    rows.results.stats[2 * r] = 0.0f;
    rows.results.stats[2 * r + 1] = 1.0f;
  }
}

template <class T>
__device__ inline void write_losses(const Rows<T>& rows, int64_t r, int64_t y, const Part& row, float z_y) {
  const bool valid = rows.is_class(y);
  const RowWeights weights = rows.weights_of(valid ? y : 0);
  const RowSums sums{row.max, row.exp_sum, row.sum - weights.total * row.max};
  const RowLoss result = row_loss(sums, z_y, weights, rows.rule);
  rows.results.loss[r] = valid ? result.loss : nanf("");
  rows.results.nll[r] = result.nll;
  rows.results.correct[r] = y == (row.first_nan == INT_MAX ? row.first : row.first_nan);
  rows.results.stats[2 * r] = row.max;
  rows.results.stats[2 * r + 1] = valid ? row.exp_sum : nanf("");
}

// A block may write to another's shared memory once that one runs: all of them say so at the start.
__device__ inline void announce_to_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

// The parts of a cluster's blocks as one, in the first warp of each block. Each block hands its part to all the others.
template <Options options>
__device__ inline Part joined_in_cluster(Part part, Part* of_block) {
#if __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned blocks = cluster.num_blocks();
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
  if (threadIdx.x < blocks) {
    *cluster.map_shared_rank(of_block + cluster.block_rank(), threadIdx.x) = part;
  }
  cluster.sync();
  if (threadIdx.x < warp_size) {
    part = joined<options>(threadIdx.x < blocks ? of_block[threadIdx.x] : Part{});
  }
#endif
  return part;
}

template <class T>
__device__ inline Gradient gradient_of(const Rows<T>& rows, int64_t r, int64_t y, float max, float exp_sum) {
  const bool valid = rows.is_class(y);
  const RowGradient rule = row_gradient(rows.grad_loss(r), max, exp_sum, rows.weights_of(valid ? y : 0), rows.rule);
  return {max, exp_sum, valid ? static_cast<float>(rule.scale) : nanf(""), rule.offset, rule.mass};
}

// Whether a thread writes element y of a slice.
template <class T>
__device__ inline bool writes(const T* out, int count, int64_t y, int thread, int threads) {
  return y >= 0 && y < count && thread == Layout<T>(out, count).writer(static_cast<int>(y), threads);
}

// The target's element, by the thread that has written its pack: so this is the later store.
template <class T>
__device__ inline void write_target(const Rows<T>& rows, int64_t r, int64_t y, const Gradient& gradient, float z_y) {
  const RowWeights weights = rows.weights_of(y);
  rows.grad[r * rows.grad_stride + y] = from_float<T>(target_gradient(
      rows.grad_loss(r), z_y, gradient.max, gradient.exp_sum, gradient.mass, weights, rows.rule));
}

// Losses of rows and, if wanted, gradients. A row is a warp's, a block's or a cluster's.
template <class T, Options options>
__global__ void __launch_bounds__(max_threads, 2) rows_kernel(const __grid_constant__ Rows<T> rows) {
  extern __shared__ uint4 memory[];
  __shared__ Part of_warp[max_threads / warp_size];
  __shared__ Part of_block[max_cluster];
  __shared__ Gradient gradients[warps_per_block];
  const int thread = threadIdx.x, threads = blockDim.x;
  const bool whole_block = blockDim.y == 1, keep = rows.grad != nullptr;
  const int64_t r = static_cast<int64_t>(blockIdx.x / rows.slices) * blockDim.y + threadIdx.y;
  const int begin = static_cast<int>(blockIdx.x % rows.slices) * rows.slice;
  const int count = min(rows.slice, rows.cols - begin);
  if (r >= rows.rows) {
    return;
  }
  const int64_t y = rows.target[r];
  if (y == rows.ignore_index) {
    write_ignored(rows, r, begin, count, thread, threads);
    return;
  }
  if (rows.slices > 1) {
    announce_to_cluster();
  }
  // Read now, by every thread: once the gradient is written over the logits it is gone.
  const T* row = rows.logits + r * rows.row_stride;
  const float x_y = rows.is_class(y) ? to_float(row[y]) : nanf("");
  const T* x = row + begin;
  const Layout<T> layout(x, count);
  const Kept<T> kept(reinterpret_cast<char*>(memory) + threadIdx.y * rows.row_bytes, layout, rows.kept, count);
  const Elements<options> elements = rows.template elements<options>(begin);

  Part part = joined<options>(scan(x, layout, kept, keep, elements, thread, threads));
  if (whole_block) {
    if (thread % warp_size == 0) {
      of_warp[thread / warp_size] = part;
    }
    __syncthreads();
  }
  if (!whole_block || thread < warp_size) {
    if (whole_block) {
      part = joined<options>(thread < threads / warp_size ? of_warp[thread] : Part{});
    }
    resolve(part, x, count, elements);
    part.first += begin;
    part.first_nan += part.first_nan == INT_MAX ? 0 : begin;
  }
  if (rows.slices > 1) {
    part = joined_in_cluster<options>(part, of_block);
  }
  if (keep) {
    if (thread == 0) {
      gradients[threadIdx.y] = gradient_of(rows, r, y, part.max, part.exp_sum);
    }
    synchronize(whole_block);
    const Gradient gradient = gradients[threadIdx.y];
    T* out = rows.grad + r * rows.grad_stride + begin;
    write_gradient<true>(x, out, count, kept, gradient, elements, thread, threads);
    if (writes(out, count, y - begin, thread, threads)) {
      write_target(rows, r, y, gradient, elements.capped(x_y));
    }
  }
  if (thread == 0 && begin == 0) {
    write_losses(rows, r, y, part, elements.capped(x_y));
  }
}

// Gradients from what the losses left in stats. A row is a warp's, or cut into slices for blocks.
template <class T, Options options>
__global__ void __launch_bounds__(max_threads, 2) gradient_kernel(const __grid_constant__ Rows<T> rows) {
  const int thread = threadIdx.x, threads = blockDim.x;
  const int64_t r = static_cast<int64_t>(blockIdx.x / rows.slices) * blockDim.y + threadIdx.y;
  const int begin = static_cast<int>(blockIdx.x % rows.slices) * rows.slice;
  const int count = min(rows.slice, rows.cols - begin);
  if (r >= rows.rows) {
    return;
  }
  const int64_t y = rows.target[r];
  T* out = rows.grad + r * rows.grad_stride + begin;
  if (y == rows.ignore_index) {
    write_zeros(out, count, thread, threads);
    return;
  }
  const T* x = rows.logits + r * rows.row_stride + begin;
  const Elements<options> elements = rows.template elements<options>(begin);
  // Only its writer may read the target's logit: the others may come when the gradient is written over it.
  const bool has_target = writes(out, count, y - begin, thread, threads);
  const float x_y = has_target ? to_float(x[y - begin]) : 0.0f;
  const Gradient gradient = gradient_of(rows, r, y, rows.stats[2 * r], rows.stats[2 * r + 1]);
  write_gradient<false>(x, out, count, Kept<T>(), gradient, elements, thread, threads);
  if (has_target) {
    write_target(rows, r, y, gradient, elements.capped(x_y));
  }
}

// Multiplies a gradient by a number. Ignored rows stay 0, which inf times 0 would not. The grid is small, so that
// little is done where the number is 1.
template <class T>
__global__ void __launch_bounds__(max_threads, 2) scale_kernel(const __grid_constant__ Rows<T> rows, int64_t items) {
  const float factor = *rows.weighting.of_row;
  if (factor == 1.0f) {
    return;
  }
  const auto scaled = [factor](T value) { return from_float<T>(to_float(value) * factor); };
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t r = item / rows.slices * blockDim.y + threadIdx.y;
    const int begin = static_cast<int>(item % rows.slices) * rows.slice;
    if (r >= rows.rows || rows.target[r] == rows.ignore_index) {
      continue;
    }
    T* out = rows.grad + r * rows.grad_stride + begin;
    const Layout<T> layout(out, min(rows.slice, rows.cols - begin));
    for (int pack = threadIdx.x; pack < layout.packs; pack += blockDim.x) {
      Pack<T> values = load_once(out + layout.at(pack));
#pragma unroll
      for (int k = 0; k < Pack<T>::size; ++k) {
        values.values[k] = scaled(values.values[k]);
      }
      store_pack(out + layout.at(pack), values);
    }
    const int edge = layout.edge(threadIdx.x);
    if (edge >= 0) {
      out[edge] = scaled(out[edge]);
    }
  }
}

}  // namespace
}  // namespace pyseq
