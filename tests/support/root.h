#pragma once

#include "support/catch.h"

#include <unistd.h>

namespace lamina::test {

/// For tests whose files belong to several owners or have attributes that root alone may set; says that one is skipped.
inline bool is_root() {
    if (::geteuid() == 0) return true;
    WARN("SKIPPED: needs root");
    return false;
}

}  // namespace lamina::test
