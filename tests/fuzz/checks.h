#pragma once

#include "store/error.h"

#include <cstdlib>
#include <utility>

namespace lamina::fuzz {

/// What a fuzz target finds wrong ends it.
inline void check(bool is_so) {
    if (!is_so) std::abort();
}

/// `act` may refuse its input, with one line of printable text.
template <class Act>
void refuse_or(Act&& act) {
    try {
        std::forward<Act>(act)();
    } catch (const store::Error& error) {
        check(error.code() != store::Errc::internal);
        for (const char* c = error.what(); *c; ++c) check(static_cast<unsigned char>(*c) >= 0x20 && *c != 0x7f);
    }
}

}  // namespace lamina::fuzz
