#include "data/batching.h"

#include <algorithm>

namespace pyseq {
namespace {

// 128 bits, so that no limit and no length makes the product wrap.
bool exceeds(int64_t sentences, int64_t longest, int64_t limit) {
  return limit > 0 && static_cast<__int128>(sentences) * longest > limit;
}

}  // namespace

Batches batch_by_size(const int64_t* num_tokens, int64_t n, const BatchLimits& limits, int64_t* ends) {
  int64_t count = 0;
  int64_t begin = 0;          // the open batch is [begin, end): its size is legal
  int64_t end = 0;            // the tail is [end, i]: not yet legal together with the batch
  int64_t batch_longest = 0;  // longest sample of the batch
  int64_t tail_longest = 0;   // longest sample of the tail
  for (int64_t i = 0; i < n; ++i) {
    const int64_t tokens = num_tokens[i];
    if (exceeds(1, tokens, limits.max_tokens)) return {count, i};
    tail_longest = std::max(tail_longest, tokens);
    int64_t longest = std::max(batch_longest, tail_longest);
    const int64_t size = i + 1 - begin;
    const bool overflow =
        (limits.max_sentences > 0 && size > limits.max_sentences) || exceeds(size, longest, limits.max_tokens);
    if (overflow) {
      ends[count++] = end;
      if (exceeds(i + 1 - end, tail_longest, limits.max_tokens)) {  // the tail fits only without this sample
        ends[count++] = i;
        end = i;
        tail_longest = tokens;
      }
      begin = end;
      longest = tail_longest;
    }
    // What is left of the tail after an overflow is shorter than `multiple`, hence legal by itself.
    if (overflow || size < limits.multiple || size % limits.multiple == 0) {
      end = i + 1;
      batch_longest = longest;
      tail_longest = 0;
    }
  }
  if (end > begin) ends[count++] = end;
  if (n > end) ends[count++] = n;
  return {count, -1};
}

}  // namespace pyseq
