// How work on a large matrix is shared out and written.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pyseq {

// Waking a thread costs about as much as 16 Ki elements.
static inline int useful_threads(int threads, int64_t rows, int64_t cols) {
  const int64_t worth = rows * cols / 16384 + 1;
  const int64_t wanted = threads < worth ? threads : worth;
  return static_cast<int>(wanted < 1 ? 1 : wanted);
}

// The team of threads for so many parts of a work. libgomp ends the threads that a smaller team than the last leaves over and
// starts others for the next larger one, which takes longer than most operations. So a team is one thread or all, as torch's
// teams are, and threads without a part have nothing to do.
static inline int team_for(int64_t parts, int threads) { return parts > 1 ? threads : 1; }

// Whether an array is too large to be found in the cache by whoever reads it next. Then stores that bypass the cache
// save reading the lines that they replace.
static inline bool is_beyond_cache(int64_t bytes) { return bytes > (int64_t{16} << 20); }

// Fresh memory of many megabytes is mapped page by page as it is first written: 2 MiB at a time instead of 4 KiB, where
// the system leaves the choice to the program. Advice only; the contents are not touched.
static inline void advise_huge_pages(void* begin, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = uintptr_t{2} << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + static_cast<uintptr_t>(bytes)) / page * page;
  if (bytes >= (int64_t{8} << 20) && first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#else
  (void)begin;
  (void)bytes;
#endif
}

// After streaming stores, before another thread reads what was written.
static inline void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace pyseq
