#pragma once

#include "store/error.h"

#include <cerrno>
#include <expected>

namespace lamina::unionfs {

/// A POSIX error number, positive. A type of its own, so that it is not taken for a count.
enum class Errno : int {};

template <class T>
using Result = std::expected<T, Errno>;

inline std::unexpected<Errno> fail(int error_number) {
    return std::unexpected(Errno{error_number});
}

/// The one place where a store error becomes an errno.
constexpr Errno errno_for(store::Errc code) {
    switch (code) {  // No default: -Wswitch makes a new code choose its errno.
        case store::Errc::not_found:
            return Errno{ENOENT};
        case store::Errc::already_exists:
            return Errno{EEXIST};
        case store::Errc::no_space:
            return Errno{ENOSPC};
        case store::Errc::quota:
            return Errno{EDQUOT};
        case store::Errc::busy:
            return Errno{EBUSY};
        case store::Errc::read_only:
            return Errno{EROFS};
        case store::Errc::denied:
            return Errno{EACCES};
        case store::Errc::cancelled:
            return Errno{EINTR};
        case store::Errc::unsupported:
            return Errno{EOPNOTSUPP};
        case store::Errc::malformed:
        case store::Errc::corrupt:
        case store::Errc::unavailable:
        case store::Errc::timed_out:
        case store::Errc::internal:
            return Errno{EIO};
    }
    return Errno{EIO};
}

}  // namespace lamina::unionfs
