#pragma once

#include "fuse/result.h"

#include <exception>
#include <new>

namespace lamina::unionfs {

/// Runs `work` where an exception must become an errno, because the caller answers a system call.
template <class Work>
Result<void> contain(Work&& work) noexcept {
    try {
        work();
        return {};
    } catch (const store::Error& error) {
        return std::unexpected(errno_for(error.code()));
    } catch (const std::bad_alloc&) {
        return fail(ENOMEM);
    } catch (const std::exception&) {
        return fail(EIO);
    }
}

}  // namespace lamina::unionfs
