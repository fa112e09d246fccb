// Which instruction sets this processor runs, and which of them to use.
#pragma once

#include <vector>

#include "backend.h"

namespace rit {

// Those that processor and operating system support, best last.
const std::vector<const Backend*>& backends();

// The best, or the one that RITORNELLO_ISA names. Throws std::invalid_argument if that is none of `backends()`.
const Backend& choose_backend();

}  // namespace rit
