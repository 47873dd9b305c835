#include "dispatch.h"

namespace dinomed {
extern const Kernels avx512_kernels = {"avx512", forward_any, backward_any};
}  // namespace dinomed
