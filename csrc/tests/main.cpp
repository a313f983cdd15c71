#include "tests/check.h"

std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}

int main() {
  for (const Test& test : all_tests()) {
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    test.run();
  }
  std::printf("%zu tests passed\n", all_tests().size());
  return 0;
}
