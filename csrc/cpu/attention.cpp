#include "cpu/attention.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace pyseq {

namespace {

AttentionKernels kernels_for(DType dtype) {
  return PYSEQ_OF_ISA(attention_kernels(dtype));
}

// Neighbouring heads lie in the same pages of memory, and the next one is on its way to the cache while one is computed:
// a thread takes as many together as leave 16 tasks for each thread.
int64_t heads_together(const AttentionShape& shape, int threads) {
  return std::clamp<int64_t>(shape.segments * shape.heads / (16 * std::max(threads, 1)), 1, shape.heads);
}

// What threads share: some heads of a segment are a task.
class Tasks {
 public:
  Tasks(const AttentionShape& shape, bool backward)
      : costs_(static_cast<size_t>(shape.segments)), order_(costs_.size()) {
    int64_t longest_query = 0, longest_key = 0;
    for (size_t b = 0; b < costs_.size(); ++b) {
      const int64_t queries = shape.query_offsets[b + 1] - shape.query_offsets[b];
      const int64_t keys = shape.key_offsets[b + 1] - shape.key_offsets[b];
      costs_[b] = queries * keys + queries + keys;
      longest_query = std::max(longest_query, queries);
      longest_key = std::max(longest_key, keys);
    }
    // The last to begin are the cheapest: threads end at about the same time.
    std::iota(order_.begin(), order_.end(), int64_t{0});
    std::stable_sort(order_.begin(), order_.end(), [this](int64_t a, int64_t b) {
      return costs_[static_cast<size_t>(a)] > costs_[static_cast<size_t>(b)];
    });
    work_ = attention_work(longest_query, longest_key, shape.dim, backward);
  }

  // run(segment, head, work) for all of them.
  template <class Run>
  void run(const AttentionShape& shape, int threads, const Run& run) const {
    const int64_t cost = std::accumulate(costs_.begin(), costs_.end(), int64_t{0});
    const int64_t together = heads_together(shape, threads), parts = (shape.heads + together - 1) / together;
#pragma omp parallel num_threads(team_for(useful_threads(threads, cost, shape.heads* shape.dim), threads))
    {
      const size_t line = 16;
      const std::unique_ptr<float[]> memory(new float[static_cast<size_t>(work_) + line]);
      float* const work = memory.get() + (line - reinterpret_cast<uintptr_t>(memory.get()) / sizeof(float) % line);
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < shape.segments * parts; ++i) {
        const int64_t first = i % parts * together;
        for (int64_t head = first; head < std::min(first + together, shape.heads); ++head) {
          run(order_[static_cast<size_t>(i / parts)], head, work);
        }
      }
    }
  }

 private:
  std::vector<int64_t> costs_, order_;
  int64_t work_;
};

}  // namespace

int64_t attention_work(int64_t queries, int64_t keys, int64_t dim, bool backward) {
  const int64_t row = attention_stride(dim), scores = attention_stride(std::min(keys, attention_keys));
  const int64_t blocks = (keys + attention_keys - 1) / attention_keys, here = std::min(queries, attention_queries);
  return backward ? 2 * blocks * dim * scores + 3 * keys * row + here * (3 * row + 2 * scores)
                  : blocks * dim * scores + keys * row + here * (2 * row + scores);
}

void attention_forward(const AttentionShape& shape, const AttentionForward& data, int threads) {
  const AttentionKernels kernels = kernels_for(shape.dtype);
  Tasks(shape, false).run(shape, threads, [&](int64_t segment, int64_t head, float* work) {
    kernels.forward(shape, data, segment, head, work);
  });
}

void attention_backward(const AttentionShape& shape, const AttentionBackward& data, int threads) {
  const AttentionKernels kernels = kernels_for(shape.dtype);
  Tasks(shape, true).run(shape, threads, [&](int64_t segment, int64_t head, float* work) {
    kernels.backward(shape, data, segment, head, work);
  });
}

}  // namespace pyseq
