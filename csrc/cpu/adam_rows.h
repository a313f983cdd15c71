// The rows of Adam in vectors; included by a file for each instruction set.
#pragma once

#include <type_traits>

#include "cpu/adam.h"
#include "cpu/random_vec.h"
#include "cpu/remainder_vec.h"
#include "cpu/vec.h"

namespace pyseq {
namespace PYSEQ_ISA {

template <class T>
static inline Vec load_some(const T* p, int count) {
  return count == Vec::width ? load(p) : load(p, count, 0.0f);
}
template <class T>
static inline void store_some(T* p, Vec a, int count) {
  if (count == Vec::width) {
    store(p, a);
  } else {
    store(p, a, count);
  }
}

// What an update does beside the moments and the parameter.
struct Form {
  AdamTerms terms;
  bool amsgrad, zero_grads;
};

template <class P, class G, class S, Extra extra>
struct Rows {
  static constexpr bool stochastic = std::is_same<S, bf16>::value;

  static inline Vec load_param(const AdamRow& row, int64_t i, int count) {
    if constexpr (extra == Extra::master) {
      return load_some(static_cast<const float*>(row.extra) + i, count);
    } else if constexpr (extra == Extra::remainder) {
      return load_master(static_cast<const bf16*>(row.param) + i, static_cast<const uint16_t*>(row.extra) + i, count);
    } else {
      return load_some(static_cast<const P*>(row.param) + i, count);
    }
  }

  static inline void store_param(const AdamRow& row, int64_t i, Vec param, int count) {
    if constexpr (extra == Extra::remainder) {
      store_master(static_cast<bf16*>(row.param) + i, static_cast<uint16_t*>(row.extra) + i, param, count);
    } else {
      store_some(static_cast<P*>(row.param) + i, param, count);
      if constexpr (extra == Extra::master) {
        store_some(static_cast<float*>(row.extra) + i, param, count);
      }
    }
  }

  static inline void store_state(S* p, Vec value, Bits random, int count) {
    if constexpr (!stochastic) {
      store_some(p, value, count);
    } else if (count == Vec::width) {
      store_stochastically(p, value, random);
    } else {
      store_stochastically(p, value, random, count);
    }
  }

  // `count` elements from `i` on; inlined, so that it is compiled apart for whole vectors and for each form.
  static inline __attribute__((always_inline)) void vector_at(const AdamRow& row, int64_t i, int count,
                                                              const AdamStep& step, Form form, Bits random) {
    S* const m = static_cast<S*>(row.exp_avg) + i;
    S* const v = static_cast<S*>(row.exp_avg_sq) + i;
    G* const g = static_cast<G*>(row.grad) + i;
    Vec param = load_param(row, i, count);
    Vec exp_avg = load_some(m, count);
    Vec exp_avg_sq = load_some(v, count);
    const Vec grad = load_some(g, count);
    if (!form.amsgrad) {
      adam_update<Vec>(step, form.terms, grad, &param, &exp_avg, &exp_avg_sq, nullptr);
      store_state(v, exp_avg_sq, high_halves(random), count);
    } else {
      S* const max = static_cast<S*>(row.max_exp_avg_sq) + i;
      const Vec before = load_some(max, count);
      Vec largest = before;
      adam_update<Vec>(step, form.terms, grad, &param, &exp_avg, &exp_avg_sq, &largest);
      store_state(v, exp_avg_sq, high_halves(random), count);
      store_some(max, stochastic ? larger(before, load_some(v, count)) : largest, count);
    }
    store_state(m, exp_avg, random, count);
    store_param(row, i, param, count);
    if (form.zero_grads) {
      store_some(g, Vec(0.0f), count);
    }
  }

  // Whole vectors from `i` on. Returns where they end.
  static inline __attribute__((always_inline)) int64_t loop(const AdamRow& row, int64_t i, int64_t end,
                                                            const AdamStep& step, Form form) {
    for (; i + Vec::width <= end; i += Vec::width) {
      vector_at(row, i, Vec::width, step, form, Bits{});
    }
    return i;
  }

  // Row and step are copies: what is stored cannot change them, so they need not be read again for every vector.
  static void update(const AdamRow& given_row, int64_t begin, int64_t end, const AdamStep& given_step,
                     const AdamOptions& options) {
    const AdamRow row = given_row;
    const AdamStep step = given_step;
    const Form form{adam_terms(step), row.max_exp_avg_sq != nullptr, options.zero_grads};
    int64_t i = begin;
    if constexpr (!stochastic) {
      // The common forms have loops of their own. A processor looks a number of instructions ahead: the fewer a vector
      // takes, the more memory it asks for at once.
      i = form.terms.l2 || form.amsgrad || form.zero_grads ? loop(row, begin, end, step, form)
          : form.terms.decay ? loop(row, begin, end, step, Form{{false, true}, false, false})
                             : loop(row, begin, end, step, Form{{false, false}, false, false});
      if (i < end) {
        vector_at(row, i, static_cast<int>(end - i), step, form, Bits{});
      }
      return;
    }
    const RandomStream stream{options.seed,
                              static_cast<uint64_t>(options.step) << 32 | static_cast<uint32_t>(row.key)};
    while (i < end) {
      const RandomTile tile = random_tile(stream, static_cast<uint64_t>(i) / random_tile_words);
      for (int k = 0; k < RandomTile::vectors && i < end; ++k, i += Vec::width) {
        if (end - i >= Vec::width) {
          vector_at(row, i, Vec::width, step, form, tile.bits[k]);
        } else {
          vector_at(row, i, static_cast<int>(end - i), step, form, tile.bits[k]);
        }
      }
    }
  }
};

template <class P, class G, class S>
static RowUpdate with_extra(Extra extra) {
  if (extra == Extra::none) {
    return Rows<P, G, S, Extra::none>::update;
  }
  if constexpr (!std::is_same<P, float>::value) {
    if (extra == Extra::master) {
      return Rows<P, G, S, Extra::master>::update;
    }
  }
  if constexpr (std::is_same<P, bf16>::value) {
    if (extra == Extra::remainder) {
      return Rows<P, G, S, Extra::remainder>::update;
    }
  }
  return nullptr;
}

template <class P, class G>
static RowUpdate with_state(const AdamDtypes& dtypes) {
  switch (dtypes.state) {
    case DType::f32:
      return with_extra<P, G, float>(dtypes.extra);
    case DType::bf16:
      return with_extra<P, G, bf16>(dtypes.extra);
    default:
      return nullptr;
  }
}

// Gradients are of the parameters' type or fp32, or of any type beside fp32 parameters.
RowUpdate row_update(const AdamDtypes& dtypes) {
  if (dtypes.param == DType::f32) {
    return dtypes.grad == DType::f32    ? with_state<float, float>(dtypes)
           : dtypes.grad == DType::bf16 ? with_state<float, bf16>(dtypes)
                                        : with_state<float, f16>(dtypes);
  }
  if (dtypes.grad == DType::f32) {
    return dtypes.param == DType::bf16 ? with_state<bf16, float>(dtypes) : with_state<f16, float>(dtypes);
  }
  if (dtypes.grad != dtypes.param) {
    return nullptr;
  }
  return dtypes.param == DType::bf16 ? with_state<bf16, bf16>(dtypes) : with_state<f16, f16>(dtypes);
}

}  // namespace PYSEQ_ISA
}  // namespace pyseq
