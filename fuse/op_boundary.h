#pragma once

// libfuse is C. An exception that leaves an operation ends the process and every container on the mount; a request
// without a reply hangs its caller for ever; every fuse_reply_* frees the request, so a second one is use-after-free.
// So an operation only computes a Result, and answer(), which alone may reply, sends it.

#include "fuse/libfuse.h"
#include "fuse/mount_context.h"
#include "fuse/result.h"
#include "fuse/union_fs.h"

#include <sys/stat.h>

#include <fmt/format.h>

#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>

namespace lamina::unionfs {

/// Seconds that the kernel may keep names and attributes: only we change what a mount shows.
inline constexpr double kForeverSeconds = 1e9;
inline constexpr std::uint32_t kBlockBytes = 4096;

inline MountContext& context_of(fuse_req_t request) {
    return *static_cast<MountContext*>(::fuse_req_userdata(request));
}
inline UnionFs& union_of(fuse_req_t request) {
    return *context_of(request).fs;
}

struct stat to_stat(const MountContext& context, const Attributes& attributes);
fuse_entry_param to_entry_param(const MountContext& context, const Entry& entry);

// What an operation may answer, beside the values of union_fs.h.
struct WrittenBytes {
    std::size_t count = 0;
};
struct DataBytes {
    std::span<const std::byte> data;  ///< Lives until the reply is sent.
};
struct LinkText {
    std::string target;
};
/// getxattr and listxattr: the value, or with `room` 0 its size.
struct SizedValue {
    std::string value;
    std::size_t room = 0;
};
struct FileOffset {
    std::uint64_t offset_bytes = 0;
};

void send(fuse_req_t request, const Entry& entry);
void send(fuse_req_t request, const std::optional<Entry>& entry);  ///< nullopt: the kernel remembers the absence.
void send(fuse_req_t request, const Attributes& attributes);
void send(fuse_req_t request, const WrittenBytes& written);
void send(fuse_req_t request, const DataBytes& data);
void send(fuse_req_t request, const LinkText& link);
void send(fuse_req_t request, const SizedValue& value);
void send(fuse_req_t request, const FileOffset& offset);
void send(fuse_req_t request, const UnionFs::FileSystemUsage& usage);
inline void send_error(fuse_req_t request, Errno error) {
    ::fuse_reply_err(request, std::to_underlying(error));
}

/// Logs what should not happen; never throws.
void log_failure(MountContext& context, const RawRequest& request, const char* why) noexcept;

/// When removed files may be what an ENOSPC or EDQUOT is due to: true, after a wait until they are gone.
bool waits_for_room(MountContext& context, Errno error) noexcept;

/// Runs `compute`; an exception becomes an errno.
template <class Compute>
auto contain_request(MountContext& context, const RawRequest& request, Compute&& compute) noexcept
    -> decltype(compute()) {
    try {
        auto result = compute();
        if (!result && result.error() == Errno{EIO}) log_failure(context, request, "input/output error");
        return result;
    } catch (const store::Error& error) {
        log_failure(context, request, error.what());
        return std::unexpected(errno_for(error.code()));
    } catch (const std::bad_alloc&) {
        return fail(ENOMEM);
    } catch (const std::exception& error) {
        log_failure(context, request, error.what());
        return fail(EIO);
    } catch (...) {
        log_failure(context, request, "unknown exception");
        return fail(EIO);
    }
}

/// Computes once more, a moment later, what a full disk or quota stopped, if removed files are about to give back their
/// room: the kernel says that it has forgotten one a little later than the caller knows. On a worker only.
template <class Compute>
auto contain_patiently(MountContext& context, const RawRequest& request, Compute&& compute) noexcept
    -> decltype(compute()) {
    auto result = contain_request(context, request, compute);
    if (result || !waits_for_room(context, result.error())) return result;
    return contain_request(context, request, compute);
}

template <class T>
void send_result(fuse_req_t request, const Result<T>& result) {
    if (!result) {
        send_error(request, result.error());
    } else if constexpr (std::is_void_v<T>) {
        send_error(request, Errno{0});
    } else {
        send(request, *result);
    }
}

/// Computes and replies, here and now.
template <class Compute>
void answer(fuse_req_t request, Compute&& compute) noexcept {
    send_result(request, contain_request(context_of(request), Transport::current(), std::forward<Compute>(compute)));
}

/// Computes and replies on a worker: for what may block. `compute` owns what it needs.
template <class Compute>
void answer_later(fuse_req_t request, Compute compute) noexcept {
    RawRequest about = Transport::current();
    about.body = {};  // Its memory serves the next request by then.
    std::shared_ptr<Compute> shared;
    try {
        shared = std::make_shared<Compute>(std::move(compute));
        context_of(request).workers->run([request, about, shared] {
            const InHand in_hand(context_of(request).transport->page(), about.header.unique);
            send_result(request, contain_patiently(context_of(request), about, *shared));
        });
    } catch (...) {  // No memory for the task: nothing was queued, or moved if not even `shared` was.
        send_result(request, contain_request(context_of(request), about, shared ? *shared : compute));
    }
}

/// Takes look-ups back; what goes wrong is logged and leaves them counted.
void forget(MountContext& context, NodeId node, std::uint64_t count) noexcept;

}  // namespace lamina::unionfs
