// A step of a beam search: of the best next tokens of each hypothesis those that end a hypothesis and those that go on.
#pragma once

#include <cstdint>

namespace pyseq {

// Hypotheses are rows, `width` for each sentence that is left.
struct BeamStep {
  int64_t sentences, width;
  int64_t beam;        // hypotheses of a sentence, wanted and kept
  int64_t count;       // next tokens of a row
  int64_t candidates;  // the best extensions of a sentence that are looked at: `beam` to width * count
  int64_t eos;
  bool first;                // the first step: either all sentences go on or none
  const float* lprobs;       // [sentences * width, count] descending; nan counts as -inf
  const int64_t* tokens;     // [sentences * width, count]
  const float* totals;       // [sentences * width] sums of log-probabilities, or null for 0
  const int64_t* sentence;   // [sentences]: which of the batch
  int64_t* ended;            // [batch]: how many hypotheses of a sentence have ended; those of this step are added

  // The hypotheses of the next step, of the sentences that go on.
  float* next_totals;    // [sentences, beam]; -inf where a row stands for no hypothesis
  int64_t* next_tokens;  // [sentences, beam]
  int64_t* next_rows;    // [sentences, beam]: what they extend
  int64_t* going;        // [sentences]: the places of these sentences among `sentence`
  // Those that end.
  int64_t* place;       // [sentences * beam]: sentence of the batch * beam + how many had ended before
  int64_t* ended_rows;  // [sentences * beam]
  float* ended_totals;  // [sentences * beam]
};

struct BeamCounts {
  int64_t going, ended;
};

// Candidates that end count while they are among the `beam` best; a sentence goes on while fewer than `beam` hypotheses
// have ended and one that has not is possible. Among equals the earlier row, then the earlier token comes first.
BeamCounts beam_step(const BeamStep& step);

}  // namespace pyseq
