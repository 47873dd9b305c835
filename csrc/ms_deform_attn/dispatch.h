// From a call's value type to the kernels of this instruction set.
#pragma once

#include "direct.h"
#include "packed_backward.h"

namespace {

template <typename T, typename S>
bool forward_as(const Problem& problem, const Inputs& in, void* output, const Piece& piece, bool packed) {
  S* target = static_cast<S*>(output);
  return packed ? forward_packed<T, S>(problem, in, target, piece) : forward_direct<T, S>(problem, in, target, piece);
}

template <typename T, typename S>
bool backward_as(const Problem& problem, const Inputs& in, const Gradients& gradients, const Piece& piece,
                 bool packed) {
  return packed ? backward_packed<T, S>(problem, in, gradients, piece)
                : backward_direct<T, S>(problem, in, gradients, piece);
}

bool forward_any(const Problem& problem, const Inputs& in, void* output, const Piece& piece, bool packed) {
  switch (problem.type) {
    case dinomed::ValueType::float64: return forward_as<double, double>(problem, in, output, piece, packed);
    case dinomed::ValueType::bfloat16: return forward_as<float, BFloat16>(problem, in, output, piece, packed);
    case dinomed::ValueType::float16: return forward_as<float, Float16>(problem, in, output, piece, packed);
    default: return forward_as<float, float>(problem, in, output, piece, packed);
  }
}

bool backward_any(const Problem& problem, const Inputs& in, const Gradients& gradients, const Piece& piece,
                  bool packed) {
  switch (problem.type) {
    case dinomed::ValueType::float64: return backward_as<double, double>(problem, in, gradients, piece, packed);
    case dinomed::ValueType::bfloat16: return backward_as<float, BFloat16>(problem, in, gradients, piece, packed);
    case dinomed::ValueType::float16: return backward_as<float, Float16>(problem, in, gradients, piece, packed);
    default: return backward_as<float, float>(problem, in, gradients, piece, packed);
  }
}

}  // namespace
