#include <cmath>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

#include "cpu/adam.h"
#include "cpu/isa.h"
#include "cpu/segments.h"
#include "math/remainder.h"
#include "tests/check.h"

using namespace pyseq;

namespace {

template <class T>
constexpr DType dtype_of() {
  return std::is_same<T, float>::value ? DType::f32 : std::is_same<T, bf16>::value ? DType::bf16 : DType::f16;
}

template <class T>
T rounded(float value) {
  T out;
  from_float(value, &out);
  return out;
}

// One row, `offset` elements into its memory; nothing is allocated behind it, so that the address sanitizer sees a vector
// that reaches too far.
template <class P, class G, class S>
struct Case {
  size_t offset;
  std::vector<P> param;
  std::vector<G> grad;
  std::vector<S> exp_avg, exp_avg_sq, largest;
  std::vector<float> master;
  std::vector<uint16_t> remainder;

  Case(int64_t numel, size_t offset) : offset(offset) {
    std::mt19937 random(static_cast<unsigned>(numel));
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < offset + static_cast<size_t>(numel); ++i) {
      master.push_back(normal(random));
      const SplitMaster<uint32_t> split = split_master(bits_of(master.back()));
      param.push_back(rounded<P>(master.back()));
      if (std::is_same<P, bf16>::value) {
        const uint16_t bits = static_cast<uint16_t>(split.high);
        std::memcpy(&param.back(), &bits, sizeof(P) < 2 ? sizeof(P) : 2);
      }
      remainder.push_back(static_cast<uint16_t>(split.low));
      grad.push_back(rounded<G>(normal(random)));
      exp_avg.push_back(rounded<S>(normal(random)));
      exp_avg_sq.push_back(rounded<S>(0.1f + std::fabs(normal(random))));
      largest.push_back(rounded<S>(1.5f));
    }
  }

  AdamRow row(Extra extra, bool amsgrad) {
    void* const beside = extra == Extra::master      ? static_cast<void*>(master.data() + offset)
                         : extra == Extra::remainder ? static_cast<void*>(remainder.data() + offset)
                                                     : nullptr;
    return {param.data() + offset,
            grad.data() + offset,
            exp_avg.data() + offset,
            exp_avg_sq.data() + offset,
            amsgrad ? largest.data() + offset : nullptr,
            beside,
            static_cast<int64_t>(param.size() - offset),
            0};
  }
};

template <class P, class G, class S>
void check_case(int64_t numel, size_t offset, Extra extra, bool amsgrad) {
  const AdamDtypes dtypes{dtype_of<P>(), dtype_of<G>(), dtype_of<S>(), extra};
  CHECK(adam_takes(dtypes));
  const AdamStep step = adam_step({0.9, 0.98, 1e-8, 0.1, true, true, false}, 3.0, 0.01, 1.0, 1.0);
  Case<P, G, S> before(numel, offset), after(numel, offset);
  const AdamRow row = after.row(extra, amsgrad);
  adam_update_rows(&row, 1, dtypes, step, {true, 1, 4}, 2);
  const double state_rounding = dtype_of<S>() == DType::f32 ? 1e-6 : 1e-2;
  const double rounding = extra != Extra::none || dtype_of<P>() == DType::f32 ? 2e-6
                          : dtype_of<P>() == DType::bf16                      ? 1e-2
                                                                              : 2e-3;
  for (size_t i = 0; i < offset; ++i) {
    CHECK(to_float(after.grad[i]) == to_float(before.grad[i]));
  }
  for (size_t i = offset; i < before.param.size(); ++i) {
    float param = extra == Extra::none ? to_float(before.param[i]) : before.master[i];
    float m = to_float(before.exp_avg[i]), v = to_float(before.exp_avg_sq[i]), max = to_float(before.largest[i]);
    adam_update(step, adam_terms(step), to_float(before.grad[i]), &param, &m, &v, amsgrad ? &max : nullptr);
    float got = to_float(after.param[i]);
    if (extra == Extra::master) {
      got = after.master[i];
    } else if (extra == Extra::remainder) {
      uint16_t high;
      std::memcpy(&high, &after.param[i], 2);
      got = float_of(join_master(SplitMaster<uint32_t>{high, after.remainder[i]}));
    }
    CHECK(std::fabs(got - param) <= rounding * (1.0 + std::fabs(param)));
    CHECK(std::fabs(to_float(after.exp_avg[i]) - m) <= state_rounding * (1.0 + std::fabs(m)));
    CHECK(std::fabs(to_float(after.exp_avg_sq[i]) - v) <= state_rounding * (1.0 + v));
    CHECK(to_float(after.grad[i]) == 0.0f);
  }
}

template <class P, class G, class S>
void check_sizes(Extra extra) {
  for (int64_t numel = 1; numel < 140; ++numel) {
    check_case<P, G, S>(numel, static_cast<size_t>(numel % 5), extra, numel % 2 == 0);
  }
  check_case<P, G, S>(40003, 1, extra, true);
}

}  // namespace

TEST(adam_of_every_instruction_set) {
  for (int isa = static_cast<int>(best_isa()); isa >= 0; --isa) {
    CHECK(set_isa(static_cast<Isa>(isa)));
    check_sizes<float, float, float>(Extra::none);
    check_sizes<float, bf16, bf16>(Extra::none);
    check_sizes<float, f16, float>(Extra::none);
    check_sizes<bf16, bf16, float>(Extra::none);
    check_sizes<bf16, float, float>(Extra::master);
    check_sizes<bf16, bf16, float>(Extra::remainder);
    check_sizes<bf16, bf16, bf16>(Extra::remainder);
    check_sizes<f16, f16, bf16>(Extra::none);
    check_sizes<f16, float, float>(Extra::master);
  }
  CHECK(set_isa(best_isa()));
}

TEST(adam_of_many_rows_does_not_depend_on_threads) {
  const AdamDtypes dtypes{DType::f32, DType::f32, DType::bf16, Extra::none};
  const AdamStep step = adam_step({0.9, 0.98, 1e-8, 0.1, true, true, false}, 3.0, 0.01, 1.0, 1.0);
  std::vector<std::vector<float>> results;
  for (const int threads : {1, 2, 5}) {
    std::vector<Case<float, float, bf16>> cases;
    std::vector<AdamRow> rows;
    for (const int64_t numel : {40000, 1, 70001, 63, 30000}) {
      cases.emplace_back(numel, 1);
    }
    for (auto& c : cases) {
      rows.push_back(c.row(Extra::none, false));
      rows.back().key = static_cast<int64_t>(rows.size());
    }
    adam_update_rows(rows.data(), static_cast<int64_t>(rows.size()), dtypes, step, {false, 9, 4}, threads);
    results.emplace_back();
    for (const auto& c : cases) {
      results.back().insert(results.back().end(), c.param.begin(), c.param.end());
      for (const bf16 value : c.exp_avg_sq) {
        results.back().push_back(to_float(value));
      }
    }
  }
  CHECK(results[0] == results[1] && results[0] == results[2]);
}

TEST(masters_are_split_and_joined_exactly) {
  for (uint32_t high = 0; high < 0x10000u; ++high) {
    for (const uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const uint32_t bits = high << 16 | low;
      const SplitMaster<uint32_t> split = split_master(bits);
      if ((bits & 0x7f800000u) != 0x7f800000u) {
        CHECK(join_master(split) == bits);
      } else {
        CHECK(split.low == 0 && std::isnan(float_of(split.high << 16)) == std::isnan(float_of(bits)));
      }
    }
  }
}

TEST(rows_merge_where_every_column_continues) {
  const auto at = [](uintptr_t address) { return reinterpret_cast<void*>(address); };
  const RowElementSizes sizes{{2, 4, 4, 4, 4, 2}};
  std::vector<AdamRow> rows = {
      {at(100), at(1000), at(2000), at(3000), nullptr, at(4000), 10, 0},
      {at(120), at(1040), at(2040), at(3040), nullptr, at(4020), 5, 1},  // continues
      {at(130), at(1060), at(2060), at(3064), nullptr, at(4030), 5, 2},  // a gap in exp_avg_sq
      {at(140), at(1080), at(2080), at(3084), at(9), at(4040), 5, 3},    // the first with a max_exp_avg_sq
      {at(150), at(1100), at(2100), at(3104), at(29), at(4050), 1, 4},   // continues
  };
  CHECK(merge_rows(rows.data(), 5, sizes) == 3);
  CHECK(rows[0].numel == 15 && rows[0].key == 0);
  CHECK(rows[1].numel == 5 && rows[1].key == 2);
  CHECK(rows[2].numel == 6 && rows[2].key == 3 && rows[2].max_exp_avg_sq == at(9));
  CHECK(merge_rows(rows.data(), 0, sizes) == 0);
}
