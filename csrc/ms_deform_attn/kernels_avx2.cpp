#include "dispatch.h"

namespace dinomed {
extern const Kernels avx2_kernels = {"avx2", forward_any, backward_any};
}  // namespace dinomed
