// Errors: a code of aks.h, and a message that says what came, what is wanted, what to do.
#pragma once

#include <stdexcept>
#include <string>

#include "../aks.h"

namespace aks {

struct Error : std::runtime_error {
    Error(int code_, const std::string &message) : std::runtime_error(message), code(code_) {}
    int code;
};

}  // namespace aks
