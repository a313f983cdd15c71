#include "cpu/beam_step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace pyseq {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

struct Candidate {
  float total;
  int64_t token, row;
};

// The best extensions of the rows of a sentence, best first.
void find_best(const BeamStep& s, int64_t first_row, std::vector<Candidate>* best) {
  best->clear();
  for (int64_t row = first_row; row < first_row + s.width; ++row) {
    const float before = s.totals ? s.totals[row] : 0.0f;
    for (int64_t i = row * s.count; i < (row + 1) * s.count; ++i) {
      const float total = std::isnan(s.lprobs[i]) ? -infinity : before + s.lprobs[i];
      const bool full = static_cast<int64_t>(best->size()) == s.candidates;
      if (full && !(total > best->back().total)) {
        break;  // nor are those that follow
      }
      if (full) {
        best->pop_back();
      }
      const auto place = std::find_if(best->begin(), best->end(), [&](const Candidate& c) { return c.total < total; });
      best->insert(place, {total, s.tokens[i], row});
    }
  }
}

bool ends(const BeamStep& s, const Candidate& c) { return c.token == s.eos && c.total > -infinity; }

}  // namespace

BeamCounts beam_step(const BeamStep& s) {
  std::vector<Candidate> best;
  std::vector<char> goes_on(static_cast<size_t>(s.sentences));
  BeamCounts counts{0, 0};
  for (int64_t i = 0; i < s.sentences; ++i) {
    find_best(s, i * s.width, &best);
    int64_t& ended = s.ended[s.sentence[i]];
    for (int64_t c = 0; c < s.beam; ++c) {
      if (ends(s, best[c]) && ended < s.beam) {
        s.place[counts.ended] = s.sentence[i] * s.beam + ended++;
        s.ended_rows[counts.ended] = best[c].row;
        s.ended_totals[counts.ended++] = best[c].total;
      }
    }
    // The best that do not end; where a tiny vocabulary has too few, those that do make rows without a hypothesis.
    std::stable_partition(best.begin(), best.end(), [&](const Candidate& c) { return !ends(s, c); });
    for (int64_t c = 0; c < s.beam; ++c) {
      const int64_t at = i * s.beam + c;
      s.next_totals[at] = ends(s, best[c]) ? -infinity : best[c].total;
      s.next_tokens[at] = best[c].token;
      s.next_rows[at] = best[c].row;
    }
    goes_on[i] = ended < s.beam && s.next_totals[i * s.beam] > -infinity;
  }
  if (s.first && std::find(goes_on.begin(), goes_on.end(), 1) != goes_on.end()) {
    std::fill(goes_on.begin(), goes_on.end(), 1);
  }
  for (int64_t i = 0; i < s.sentences; ++i) {
    if (!goes_on[i]) {
      continue;
    }
    const int64_t from = i * s.beam, to = counts.going * s.beam;
    std::copy(s.next_totals + from, s.next_totals + from + s.beam, s.next_totals + to);
    std::copy(s.next_tokens + from, s.next_tokens + from + s.beam, s.next_tokens + to);
    std::copy(s.next_rows + from, s.next_rows + from + s.beam, s.next_rows + to);
    s.going[counts.going++] = i;
  }
  return counts;
}

}  // namespace pyseq
