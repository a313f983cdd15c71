#include "cpu/beam_step.h"

#include <cmath>
#include <limits>
#include <vector>

#include "tests/check.h"

using namespace pyseq;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr int64_t eos = 2;

// Results in memory that ends with them.
struct Results {
  std::vector<float> totals, ended_totals;
  std::vector<int64_t> tokens, rows, going, place, ended_rows;

  explicit Results(const BeamStep& s)
      : totals(size(s)), ended_totals(size(s)), tokens(size(s)), rows(size(s)),
        going(static_cast<size_t>(s.sentences)), place(size(s)), ended_rows(size(s)) {}

  static size_t size(const BeamStep& s) { return static_cast<size_t>(s.sentences * s.beam); }

  BeamCounts run(BeamStep s) {
    s.next_totals = totals.data();
    s.next_tokens = tokens.data();
    s.next_rows = rows.data();
    s.going = going.data();
    s.place = place.data();
    s.ended_rows = ended_rows.data();
    s.ended_totals = ended_totals.data();
    return beam_step(s);
  }
};

}  // namespace

TEST(beam_step_ends_and_goes_on) {
  const float nan = std::nanf("");
  const std::vector<float> lprobs = {-1, -2, -3, -0.5f, -0.75f, -4, -1, nan, nan, -1, -1, -infinity};
  const std::vector<int64_t> tokens = {7, eos, 8, eos, 9, 7, eos, 4, 5, eos, eos, 3};
  const std::vector<float> totals = {-1, -2, 0, 0};
  const std::vector<int64_t> sentence = {0, 3};
  std::vector<int64_t> ended = {0, 1, 1, 0};
  BeamStep step{};
  step.sentences = step.width = step.beam = 2;
  step.count = 3;
  step.candidates = 4;
  step.eos = eos;
  step.lprobs = lprobs.data();
  step.tokens = tokens.data();
  step.totals = totals.data();
  step.sentence = sentence.data();
  step.ended = ended.data();
  Results found(step);
  const BeamCounts counts = found.run(step);
  CHECK(counts.going == 1 && found.going[0] == 0);
  CHECK(found.tokens[0] == 7 && found.tokens[1] == 9 && found.rows[1] == 1 && found.totals[1] == -2.75f);
  CHECK(counts.ended == 3 && found.place[0] == 0 && found.place[1] == 6 && found.place[2] == 7);
  CHECK(found.ended_rows[0] == 1 && found.ended_rows[1] == 2 && found.ended_rows[2] == 3);
  CHECK(found.ended_totals[0] == -2.5f);
  CHECK(ended[0] == 1 && ended[1] == 1 && ended[3] == 2);
}

TEST(beam_step_of_nothing) {
  BeamStep step{};
  step.width = step.count = 1;
  step.beam = step.candidates = 3;
  Results found(step);
  const BeamCounts counts = found.run(step);
  CHECK(counts.going == 0 && counts.ended == 0);
}
