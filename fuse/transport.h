#pragma once

#include "fuse/arena.h"
#include "fuse/kernel_protocol.h"
#include "fuse/locked_buffer.h"
#include "fuse/request_counts.h"
#include "fuse/session_page.h"

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

struct fuse_session;
struct fuse_lowlevel_ops;

namespace lamina::unionfs {

struct MountContext;

struct MountSpec {
    std::string mountpoint;  ///< Absolute; an existing folder.
    std::string source;      ///< First column of /proc/mounts.
    bool is_read_only = false;
    bool allows_others = false;
    bool allows_set_id = false;
    bool allows_devices = false;
    std::vector<std::string> flags;  ///< Further ones of the kernel: noexec, noatime.
    bool is_debug = false;           ///< libfuse writes each request to standard error.
    bool allows_resend = true;       ///< False, for tests: as a kernel that cannot send requests again.
};

inline SessionPage& session_page(Arena& arena) {
    return *static_cast<SessionPage*>(static_cast<void*>(arena.session_bytes()));
}

/// One request as it came from the kernel. Lives until process() returns.
struct RawRequest {
    fuse_in_header header{};
    std::span<const std::byte> body;
};

/// A reading thread's place for the request in hand.
struct Inbox {
    std::unique_ptr<LockedBuffer> buffer;
    std::size_t size_bytes = 0;
    const fuse_in_header& header() const;
};

/// Says in the session page which request this thread works on, for as long as one lives: what a server had in hand
/// when it died may be what killed it.
class InHand {
public:
    InHand(SessionPage& page, std::uint64_t unique) noexcept;
    ~InHand();
    InHand(const InHand&) = delete;
    InHand& operator=(const InHand&) = delete;

private:
    SessionPage::Word* place_;
};

/// /dev/fuse of one mount: mounting, requests in, replies out, the INIT agreement (init_table.h), opcodes that the
/// packaged libfuse does not know, counters by kind; and what a next server needs to go on (take_over()).
///
/// Several threads may receive and process at once, each with an inbox of its own; any thread may reply.
class Transport {
public:
    /// Answers a request that libfuse cannot; false hands it to libfuse after all.
    using RawHandler = bool (*)(MountContext& context, const RawRequest& request);
    struct Handlers {
        const fuse_lowlevel_ops& operations;
        RawHandler raw;
        /// Answers a request that a former server has carried out already; `node` is what was sealed with it.
        void (*done_before)(MountContext& context, const RawRequest& request, std::uint64_t node);
    };

    /// `context` must outlive it and is what ops get as user data; `context.transport` must be this transport. The
    /// arena, with its session page, too.
    Transport(const Handlers& handlers, Arena& arena, MountContext& context);
    ~Transport();
    Transport(const Transport&) = delete;
    Transport& operator=(const Transport&) = delete;

    /// Called once, when the kernel has our INIT reply: the mount serves. Set before mount().
    void on_serving(std::function<void()> callback) { on_serving_ = std::move(callback); }
    /// Mounts; as a user by fusermount3. Throws store::Error, one line.
    void mount(const MountSpec& spec);
    /// Goes on with the connection of a server that has died: what that has not answered comes again. Before any thread
    /// receives. Throws unsupported where the kernel cannot do so.
    void take_over(store::UniqueFd fuse, const MountSpec& spec);
    /// Unmounts without waiting for the reading threads, which must still serve. `is_lazy` also when files are open.
    /// busy when they are and it is not lazy. Any thread but a reading one.
    void unmount(bool is_lazy);

    Inbox make_inbox();
    enum class Received { request, interrupted, ended };
    /// Waits for a request. interrupted: a signal came. ended: unmounted or aborted.
    Received receive(Inbox& inbox) noexcept;
    /// Answers the request in the inbox, or hands it to a worker.
    void process(Inbox& inbox) noexcept;
    /// True when a request waits to be received (readable), without receiving it.
    bool has_waiting_request() const noexcept;

    /// False once it is unmounted everywhere, or was aborted: nothing will come any more.
    bool is_connected() const noexcept;
    /// All that former servers owed has been looked at: any thread may receive. Else one alone.
    bool is_settled() const noexcept { return is_settled_.load(std::memory_order_relaxed); }
    int fd() const noexcept { return fd_; }

    /// The request that this thread processes; only inside process().
    static const RawRequest& current() noexcept;
    /// For an operation that outlives process(): the buffer that holds current(), which the caller must give back to
    /// buffers(). Null when there is no other buffer; then the operation must finish inside process().
    std::unique_ptr<LockedBuffer> keep_current();
    BufferPool& buffers() noexcept { return buffers_; }

    /// Replies to a raw request. `error_number` is positive, 0 for success.
    void reply(std::uint64_t unique, int error_number, std::span<const std::byte> body = {}) noexcept;

    SessionPage& page() noexcept { return page_; }
    RequestCounts& counts() noexcept { return counts_; }
    const std::string& mountpoint() const noexcept { return mountpoint_; }
    fuse_init_out init_reply() const noexcept { return init_reply_; }  ///< As sent; zeros before.

private:
    static ssize_t write_for_libfuse(int fd, iovec* parts, int count, void* userdata);
    ssize_t write_reply(iovec* parts, int count);
    ssize_t write_init_reply(iovec* parts, int count);
    void make_session(const MountSpec& spec);
    void use_descriptor(int fd);
    void note_init(const RawRequest& request);
    void replay_init();
    void ask_for_unanswered();
    void settle(const fuse_in_header& header) noexcept;
    bool answer_resent(const RawRequest& request) noexcept;
    bool puts_off(const fuse_out_header& reply) noexcept;
    void process_later(std::unique_ptr<LockedBuffer> buffer, std::size_t size_bytes) noexcept;

    const Handlers handlers_;
    Arena& arena_;
    SessionPage& page_;
    MountContext& context_;
    fuse_session* session_ = nullptr;
    int fd_ = -1;  ///< The session's.
    std::string mountpoint_;
    std::function<void()> on_serving_;
    BufferPool buffers_;
    RequestCounts counts_;
    std::atomic<bool> is_serving_{false};
    std::atomic<bool> is_settled_{true};
    std::atomic<bool> owes_first_reply_{false};
    bool is_taking_over_ = false;
    bool allows_resend_ = true;
    std::uint64_t init_unique_ = 0;
    fuse_init_in init_request_{};
    fuse_init_out init_reply_{};
};

/// Counts in the session page what the server that died had in hand. Before the new one receives.
void note_suspects(SessionPage& page) noexcept;

/// Whether an ordinary user may give others access: /etc/fuse.conf has user_allow_other.
bool user_may_allow_others(const std::string& fuse_conf_path);

}  // namespace lamina::unionfs
