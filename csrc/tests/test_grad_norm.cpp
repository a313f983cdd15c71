#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "cpu/grad_norm.h"
#include "cpu/isa.h"
#include "tests/check.h"

using namespace pyseq;

namespace {

template <class T>
void put(float value, T* out) {
  from_float(value, out);
}
void put(float value, double* out) { *out = value; }

double number(double value) { return value; }
template <class T>
double number(T value) {
  return to_float(value);
}

template <class T>
void check_sizes(int64_t dtype) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const size_t size : {0, 1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 100, 16383, 16384, 16385, 50001}) {
    std::vector<T> memory(size + 1);  // nothing behind the last element, for the address sanitizer
    long double exact = 0.0L;
    for (size_t i = 0; i < memory.size(); ++i) {
      put(normal(random), &memory[i]);
      exact += i == 0 ? 0.0L : static_cast<long double>(number(memory[i])) * number(memory[i]);
    }
    const NormRow row{memory.data() + 1, static_cast<int64_t>(size), dtype};
    const double sum = sum_of_squares(&row, 1, 1);
    CHECK(std::fabs(sum - static_cast<double>(exact)) <= 1e-13 * static_cast<double>(exact));
    CHECK(sum_of_squares(&row, 1, 3) == sum);
  }
}

}  // namespace

TEST(sums_of_squares_of_every_instruction_set) {
  for (int isa = static_cast<int>(best_isa()); isa >= 0; --isa) {
    CHECK(set_isa(static_cast<Isa>(isa)));
    check_sizes<float>(0);
    check_sizes<bf16>(1);
    check_sizes<f16>(2);
    check_sizes<double>(3);
  }
  CHECK(set_isa(best_isa()));
}

TEST(norm_and_factor_from_squares) {
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::nan("");
  CHECK(grad_norm(25.0, 2.0, -1.0).norm == 10.0f && grad_norm(25.0, 2.0, -1.0).factor == 2.0f);
  CHECK(std::fabs(grad_norm(25.0, 2.0, 1.0).factor - 0.2f) < 1e-7f);
  CHECK(grad_norm(25.0, 2.0, 100.0).factor == 2.0f && grad_norm(25.0, 2.0, 100.0).found_inf == 0.0f);
  CHECK(grad_norm(25.0, -2.0, 1.0).norm == 10.0f && grad_norm(25.0, -2.0, 1.0).factor < 0.0f);
  CHECK(grad_norm(infinity, 1.0, 1.0).found_inf == 1.0f && grad_norm(infinity, 1.0, 1.0).factor == 0.0f);
  CHECK(grad_norm(nan, 1.0, 1.0).found_inf == 1.0f && std::isnan(grad_norm(nan, 1.0, 1.0).factor));
  CHECK(grad_norm(1e80, 1.0, 1.0).found_inf == 1.0f);  // beyond fp32
  CHECK(grad_norm(0.0, 0.5, 1.0).factor == 0.5f);
}
