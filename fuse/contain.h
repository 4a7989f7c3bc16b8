#pragma once

#include "fuse/result.h"

#include <exception>
#include <new>
#include <type_traits>

namespace lamina::unionfs {

/// Runs `work`, which returns nothing or a Result, where an exception must become an errno, because the caller answers
/// a system call.
template <class Work>
Result<void> contain(Work&& work) noexcept {
    try {
        if constexpr (std::is_void_v<decltype(work())>) {
            work();
            return {};
        } else {
            return work();
        }
    } catch (const store::Error& error) {
        return std::unexpected(errno_for(error.code()));
    } catch (const std::bad_alloc&) {
        return fail(ENOMEM);
    } catch (const std::exception&) {
        return fail(EIO);
    }
}

}  // namespace lamina::unionfs
