// The best logits of rows, in vectors; included once for each instruction set.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/linear_top_candidates.h"
#include "cpu/packed_linear_rows.h"

namespace pyseq {
namespace PYSEQ_ISA {

static constexpr float infinity = std::numeric_limits<float>::infinity();
static constexpr int unroll = 4;  // independent sums, for the latency of addition
static constexpr int64_t stride = unroll * Vec::width;
// Logits of a block of rows and a block of panels stay in the second-level cache, the rows of x beside them.
static constexpr int64_t block_rows = 10 * 12;
static constexpr int64_t block_panels = 24;
static constexpr int64_t block_columns = block_panels * panel_width;

// What is known of a row after some of its columns.
struct RowSum {
  float largest = -infinity;
  double sum = 0.0;  // of exp(logit - largest)

  // The largest of the logits, nan apart. `logits` [count] is followed by -inf up to a whole number of strides.
  float add(const float* logits, int64_t count) {
    Vec most[unroll] = {Vec(-infinity), Vec(-infinity), Vec(-infinity), Vec(-infinity)};
    for (int64_t i = 0; i < count; i += stride) {
      for (int u = 0; u < unroll; ++u) {
        most[u] = max(load(logits + i + u * Vec::width), most[u]);
      }
    }
    const float block = reduce_max(max(max(most[0], most[1]), max(most[2], most[3])));
    const float before = largest;
    largest = std::max(before, block);
    if (largest == infinity) {
      return block;
    }
    const Vec center(largest == -infinity ? 0.0f : largest);  // -inf less itself would be nan
    Vec sums[unroll] = {Vec(0.0f), Vec(0.0f), Vec(0.0f), Vec(0.0f)};
    for (int64_t i = 0; i < count; i += stride) {
      for (int u = 0; u < unroll; ++u) {
        sums[u] = sums[u] + exp_nonpositive(load(logits + i + u * Vec::width) - center);
      }
    }
    if (before != largest) {
      sum *= std::exp(static_cast<double>(before) - static_cast<double>(largest));
    }
    sum += reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
    return block;
  }

  float log_sum_exp() const {
    if (largest == infinity || sum == 0.0) {
      return largest;
    }
    return static_cast<float>(static_cast<double>(largest) + std::log(sum));
  }
};

// The best of a row so far, best first.
struct Best {
  float* values;
  int64_t* columns;
  int64_t count;

  void clear(int64_t filler) {
    std::fill(values, values + count, -infinity);
    std::fill(columns, columns + count, filler);
  }

  float least() const { return values[count - 1]; }

  void add(float value, int64_t column) {
    int64_t place = count - 1;
    for (; place > 0 && values[place - 1] < value; --place) {
      values[place] = values[place - 1];
      columns[place] = columns[place - 1];
    }
    values[place] = value;
    columns[place] = column;
  }

  void add_all(const float* logits, int64_t length, int64_t first) {
    for (int64_t i = 0; i < length; i += Vec::width) {
      if (!any_above(load(logits + i), least())) {
        continue;
      }
      for (int64_t j = i; j < std::min(length, i + Vec::width); ++j) {
        if (logits[j] > least()) {
          add(logits[j], first + j);
        }
      }
    }
  }
};

static void add_block(const Candidates& job, int64_t row, int64_t first, int64_t length, float* logits, RowSum* sum) {
  std::fill(logits + length, logits + (length + stride - 1) / stride * stride, -infinity);
  const float largest = sum->add(logits, length);
  Best best{job.values + row * job.count, job.columns + row * job.count, job.count};
  const int64_t* adjusted = std::lower_bound(job.adjusted, job.adjusted + job.adjustments, first);
  bool changed = false;
  for (; adjusted < job.adjusted + job.adjustments && *adjusted < first + length; ++adjusted) {
    logits[*adjusted - first] += job.adjustment[adjusted - job.adjusted];
    changed = true;
  }
  if (changed || !(largest <= best.least())) {
    best.add_all(logits, length, first);
  }
}

static void find_candidates(const Candidates& job, int64_t begin, int64_t end) {
  const int64_t most_rows = std::min(block_rows, end - begin);
  std::vector<float> logits(static_cast<size_t>(most_rows * block_columns));
  std::vector<RowSum> sums(static_cast<size_t>(most_rows));
  const int64_t panels = job.weights.panel_count(), depth = job.weights.depth;
  Operands operands;
  for (int64_t top = begin; top < end; top += most_rows) {
    const int64_t rows = std::min(most_rows, end - top);
    std::fill(sums.begin(), sums.end(), RowSum());
    for (int64_t row = top; row < top + rows; ++row) {
      Best{job.values + row * job.count, job.columns + row * job.count, job.count}.clear(job.filler);
    }
    const Operand x = operands.of(job.x + top * depth, depth, rows, depth);
    for (int64_t panel = 0; panel < panels; panel += block_panels) {
      const int64_t last = std::min(panels, panel + block_panels);
      multiply_panels(x, rows, job.weights, panel, last, logits.data(), block_columns);
      const int64_t first = panel * panel_width;
      const int64_t length = std::min(job.weights.columns, last * panel_width) - first;
      for (int64_t r = 0; r < rows; ++r) {
        add_block(job, top + r, first, length, logits.data() + r * block_columns, &sums[static_cast<size_t>(r)]);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      job.log_sum_exp[top + r] = sums[static_cast<size_t>(r)].log_sum_exp();
    }
  }
}

CandidateRows candidate_rows() { return &find_candidates; }

}  // namespace PYSEQ_ISA
}  // namespace pyseq
