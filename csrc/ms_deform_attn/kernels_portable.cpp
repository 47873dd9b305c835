#include "dispatch.h"

namespace dinomed {
extern const Kernels portable_kernels = {"portable", forward_any, backward_any};
}  // namespace dinomed
