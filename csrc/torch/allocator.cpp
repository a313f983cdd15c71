// torch's CPU tensors from malloc.
//
// torch asks posix_memalign for 64-byte alignment, and to place n bytes glibc looks for a free block of about n + 96. The
// hole that a freed tensor leaves between two live ones is n, so a new tensor of the same size never fits it and the heap
// grows by a third and more. Asked for the same larger size every time, malloc gives the hole out again.

#include <c10/core/CPUAllocator.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "torch/torch_module.h"

namespace pyseq {

namespace {

constexpr std::uintptr_t ALIGNMENT = 64;  // what torch's vector loops and ours are fastest with

// malloc aligns to 16, so there are 16 bytes or more before the tensor, and malloc's own address lies in the last 8.
void*& block_of(void* tensor) { return static_cast<void**>(tensor)[-1]; }

void release(void* tensor) {
  if (tensor == nullptr) return;
  c10::profiledCPUMemoryReporter().Delete(tensor);
  std::free(block_of(tensor));
}

class MallocAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &release, cpu};
    const size_t wanted = bytes + ALIGNMENT;
    void* block = wanted > bytes ? std::malloc(wanted) : nullptr;
    if (block == nullptr) {
      c10::GetDefaultCPUAllocator()->allocate(bytes);  // fails too, and says so in the words that programs look for
      throw std::bad_alloc();
    }
    const auto aligned = (reinterpret_cast<std::uintptr_t>(block) / ALIGNMENT + 1) * ALIGNMENT;
    void* tensor = reinterpret_cast<void*>(aligned);
    block_of(tensor) = block;
    c10::profiledCPUMemoryReporter().New(tensor, bytes);
    return {tensor, tensor, &release, cpu};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

}  // namespace

void bind_allocator(pybind11::module_& m) {
  m.def("install_allocator", [] {
    static auto* allocator = new MallocAllocator;  // never destroyed: tensors may outlive static objects
    c10::SetCPUAllocator(allocator);
  });
}

}  // namespace pyseq
