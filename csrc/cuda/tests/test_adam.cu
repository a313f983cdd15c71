#include <cmath>

#include "cuda/adam.h"
#include "cuda/table_upload.h"
#include "cuda/tests/device_memory.h"
#include "cuda/tests/dtypes.h"
#include "math/random.h"
#include "math/remainder.h"

using namespace pyseq;

namespace {

constexpr int columns = 6;
constexpr int int16_bits = 4;  // a dtype of remainders: moved as bits, never read as a number

struct AdamCase {
  CudaAdamDtypes dtypes;
  bool amsgrad = false;
  bool decoupled = true;
  bool zero_grads = false;
  float found_inf = 0.0f;
  std::vector<size_t> sizes = {1, 7, 8, 9, 63, 64, 65, 2047, 2048, 2049, 20011};
  std::vector<size_t> shifts = {0, 0, 0, 0, 0, 0};  // elements, of each column
};

int column_dtype(const AdamCase& c, int column) {
  switch (column) {
    case 0:
      return c.dtypes.param;
    case 1:
      return c.dtypes.grad;
    case 5:
      return c.dtypes.extra == CudaExtra::master ? 0 : int16_bits;
    default:
      return c.dtypes.state;
  }
}

bool has_column(const AdamCase& c, int column) {
  return column == 4 ? c.amsgrad : column != 5 || c.dtypes.extra != CudaExtra::none;
}

size_t bytes_of(int dtype) { return dtype == int16_bits ? 2 : element_size(dtype); }

using Columns = std::vector<std::vector<uint8_t>>;

Columns columns_of(const AdamCase& c, size_t numel, Numbers* numbers) {
  Columns host(columns);
  for (int k = 0; k < columns; ++k) {
    if (!has_column(c, k)) {
      continue;
    }
    host[k].resize(numel * bytes_of(column_dtype(c, k)));
    for (size_t i = 0; i < numel; ++i) {
      if (column_dtype(c, k) == int16_bits) {
        set_element(&host[k], i, static_cast<uint16_t>(numbers->next() * 8000.0f));
      } else {
        const float x = numbers->next();
        set_number(&host[k], column_dtype(c, k), i, k >= 3 && k <= 4 ? x * x : x);
      }
    }
  }
  return host;
}

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float param_at(const AdamCase& c, const Columns& host, size_t i) {
  if (c.dtypes.extra == CudaExtra::master) {
    return element<float>(host[5], i);
  }
  if (c.dtypes.extra == CudaExtra::remainder) {
    return float_of(join_master(SplitMaster<uint32_t>{element<uint16_t>(host[0], i), element<uint16_t>(host[5], i)}));
  }
  return static_cast<float>(number_at(host[0], c.dtypes.param, i));
}

void set_param(const AdamCase& c, Columns* host, size_t i, float value) {
  if (c.dtypes.extra == CudaExtra::remainder) {
    const SplitMaster<uint32_t> split = split_master(bits_of(value));
    set_element(&(*host)[0], i, static_cast<uint16_t>(split.high));
    set_element(&(*host)[5], i, static_cast<uint16_t>(split.low));
    return;
  }
  set_number(&(*host)[0], c.dtypes.param, i, value);
  if (c.dtypes.extra == CudaExtra::master) {
    set_element(&(*host)[5], i, value);
  }
}

void set_state(const AdamCase& c, Columns* host, int column, size_t i, float value, uint32_t random16) {
  if (c.dtypes.state == 0) {
    set_element(&(*host)[column], i, value);
  } else {
    set_element(&(*host)[column], i, static_cast<uint16_t>(round_stochastically(bits_of(value), random16)));
  }
}

void update_on_host(const AdamCase& c, const AdamStep& step, RandomStream stream, Columns* host, size_t numel) {
  for (size_t i = 0; i < numel; ++i) {
    float p = param_at(c, *host, i);
    float m = static_cast<float>(number_at((*host)[2], c.dtypes.state, i));
    float v = static_cast<float>(number_at((*host)[3], c.dtypes.state, i));
    const float before = c.amsgrad ? static_cast<float>(number_at((*host)[4], c.dtypes.state, i)) : 0.0f;
    float most = before;
    const float grad = static_cast<float>(number_at((*host)[1], c.dtypes.grad, i));
    adam_update<float>(step, adam_terms(step), grad, &p, &m, &v, c.amsgrad ? &most : nullptr);
    const uint32_t random = random_word(stream, i);
    set_state(c, host, 2, i, m, random & 0xffffu);
    set_state(c, host, 3, i, v, random >> 16);
    if (c.amsgrad) {
      const float stored = static_cast<float>(number_at((*host)[3], c.dtypes.state, i));
      set_number(&(*host)[4], c.dtypes.state, i, c.dtypes.state == 0 ? most : larger(before, stored));
    }
    set_param(c, host, i, p);
  }
}

// Moments take no number that pow has made, so they have the host's bits; parameters may differ by a rounding or two.
void check_columns(const AdamCase& c, const Columns& want, const Columns& got, size_t numel) {
  CHECK(got[1] == want[1] && got[2] == want[2] && got[3] == want[3] && got[4] == want[4]);
  const double coarse = c.dtypes.param == 1 ? 1.0 / 128 : c.dtypes.param == 2 ? 1.0 / 1024 : 1e-6;
  for (size_t i = 0; i < numel; ++i) {
    const double a = param_at(c, got, i), b = param_at(c, want, i);
    CHECK(std::fabs(a - b) <= (c.dtypes.extra == CudaExtra::none ? coarse : 1e-6) * (std::fabs(b) + 1e-2));
    if (c.dtypes.extra == CudaExtra::master) {
      const double x = number_at(got[0], c.dtypes.param, i);
      CHECK(std::fabs(x - a) <= coarse * (std::fabs(a) + 1e-4));
    }
  }
}

void check_adam(const AdamCase& c) {
  Numbers numbers(static_cast<uint32_t>(c.sizes.size()));
  const size_t count = c.sizes.size();
  std::vector<Columns> host;
  std::vector<std::vector<DeviceMemory>> device(count);
  std::vector<int64_t> table;
  int64_t element_bytes[columns];
  for (int k = 0; k < columns; ++k) {
    element_bytes[k] = static_cast<int64_t>(bytes_of(column_dtype(c, k)));
  }
  for (size_t r = 0; r < count; ++r) {
    host.push_back(columns_of(c, c.sizes[r], &numbers));
    for (int k = 0; k < columns; ++k) {
      device[r].emplace_back(host[r][k], c.shifts[k] * static_cast<size_t>(element_bytes[k]));
      table.push_back(has_column(c, k) ? reinterpret_cast<int64_t>(device[r][k].data()) : 0);
    }
    table.insert(table.end(), {static_cast<int64_t>(c.sizes[r]), static_cast<int64_t>(r)});
  }
  std::vector<AdamSegment> segments(count + 1);
  const DeviceWorkspace workspace;
  const DeviceNumber<float> step(41.0f), lr(0.01f), factor(0.5f), grad_scale(4.0f), found_inf(c.found_inf);
  CudaAdam input{};
  input.segments = segments.data();
  input.count = static_cast<int>(count);
  input.chunks = adam_segments(table.data(), static_cast<int64_t>(count), element_bytes, segments.data());
  DeviceMemory on_device(segments.size() * sizeof(AdamSegment));
  if (input.count > adam_inline_segments) {
    CHECK_CUDA(upload_table(on_device.data(), segments.data(), count * sizeof(AdamSegment), nullptr));
    input.device_segments = on_device.data<const AdamSegment>();
  }
  input.dtypes = c.dtypes;
  input.rule = {0.9, 0.98, 1e-8, 0.1, c.decoupled, true, false};
  input.lr = -1.0;
  input.scalars = {step.data(), lr.data(), factor.data(), grad_scale.data(), found_inf.data()};
  input.zero_grads = c.zero_grads;
  input.seed = 0x123456789abcdefull;
  input.workspace = workspace.data();
  const bool skipped = c.found_inf != 0.0f;
  for (int done = 41; done < 43; ++done) {
    CHECK_CUDA(cuda_adam(input, nullptr));
    CHECK(step.get() == static_cast<float>(skipped ? 41 : done + 1));
    const AdamStep now = adam_step(input.rule, done, static_cast<double>(0.01f), 0.5, 4.0);
    for (size_t r = 0; r < count; ++r) {
      const RandomStream stream{input.seed, static_cast<uint64_t>(done + 1) << 32 | r};
      if (!skipped) {
        update_on_host(c, now, stream, &host[r], c.sizes[r]);
      }
      if (c.zero_grads) {
        std::fill(host[r][1].begin(), host[r][1].end(), uint8_t{0});
      }
      Columns got(columns);
      for (int k = 0; k < columns; ++k) {
        got[k] = has_column(c, k) ? device[r][k].read() : std::vector<uint8_t>();
      }
      check_columns(c, host[r], got, c.sizes[r]);
      host[r] = got;  // so that roundings do not add up
    }
  }
}

std::vector<CudaAdamDtypes> all_dtypes() {
  std::vector<CudaAdamDtypes> found;
  for (int param = 0; param < 3; ++param) {
    for (int grad = 0; grad < 3; ++grad) {
      for (int state = 0; state < 2; ++state) {
        for (int extra = 0; extra < 3; ++extra) {
          const CudaAdamDtypes dtypes{param, grad, state, static_cast<CudaExtra>(extra)};
          if (cuda_adam_takes(dtypes)) {
            found.push_back(dtypes);
          }
        }
      }
    }
  }
  return found;
}

AdamCase case_of(const CudaAdamDtypes& dtypes) {
  AdamCase c;
  c.dtypes = dtypes;
  return c;
}

}  // namespace

TEST(adam_of_all_dtypes) {
  CHECK(all_dtypes().size() == 26);
  for (const CudaAdamDtypes& dtypes : all_dtypes()) {
    check_adam(case_of(dtypes));
  }
}

TEST(adam_with_amsgrad_and_decay_into_the_gradient) {
  for (const CudaAdamDtypes& dtypes : all_dtypes()) {
    AdamCase c = case_of(dtypes);
    c.amsgrad = true;
    c.decoupled = false;
    check_adam(c);
  }
}

TEST(adam_at_odd_addresses) {
  for (const CudaAdamDtypes& dtypes : all_dtypes()) {
    for (const std::vector<size_t>& shifts :
         {std::vector<size_t>{1, 1, 1, 1, 1, 1}, {3, 3, 3, 3, 3, 3}, {0, 1, 2, 3, 0, 1}}) {
      AdamCase c = case_of(dtypes);
      c.shifts = shifts;
      c.amsgrad = shifts[0] == 3;
      check_adam(c);
    }
  }
}

TEST(adam_of_many_tensors) {
  for (const size_t count : {0, 1, 49, 50, 51, 600}) {  // as arguments and as a table, which takes one or more launches
    AdamCase c = case_of({1, 1, 0, CudaExtra::remainder});
    c.sizes.clear();
    for (size_t i = 0; i < count; ++i) {
      c.sizes.push_back(1 + i * 29 % 100);
    }
    check_adam(c);
  }
}

TEST(adam_that_is_skipped) {
  for (const bool zero_grads : {false, true}) {
    for (const float found_inf : {0.0f, 1.0f, static_cast<float>(NAN)}) {
      AdamCase c = case_of({1, 1, 1, CudaExtra::master});
      c.zero_grads = zero_grads;
      c.found_inf = found_inf;
      check_adam(c);
    }
  }
}
