// The parts of pyseq._torch.
#pragma once

#include <pybind11/pybind11.h>

namespace pyseq {

void bind_allocator(pybind11::module_& m);
void bind_tensor_access(pybind11::module_& m);

}  // namespace pyseq
