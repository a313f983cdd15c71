// A test is a function that calls CHECK; main.cpp runs all of them. CHECK works in release builds, unlike assert.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <vector>

struct Test {
  const char* name;
  void (*run)();
};

std::vector<Test>& all_tests();

struct Registration {
  Registration(const char* name, void (*run)()) { all_tests().push_back({name, run}); }
};

#define TEST(name)                                       \
  static void name();                                    \
  static const Registration registration_##name(#name, name); \
  static void name()

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)
