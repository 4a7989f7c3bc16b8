// libfuse takes requests apart and puts replies together; reading and writing /dev/fuse is ours. A reading thread reads
// into its inbox, process() looks at the opcode: those that libfuse 3.14 cannot answer go to the raw handler, all
// others to fuse_session_process_buf(), which calls an operation of ops.cpp. Replies come back through libfuse's custom
// I/O, where the one to INIT is replaced by what init_table.h says: libfuse would not agree on flags that it does not
// know.
//
// The kernel sends INIT first and nothing else before its reply, so that the fields about it need no lock. It sends it
// once in the life of a connection: a server that takes one over gives libfuse the INIT that the first one got, drops
// the reply, and asks the kernel for what has no answer yet. Those requests come first, in one thread, with a bit in
// `unique`.
#include "fuse/transport.h"

#include "fuse/holder_watch.h"
#include "fuse/init_table.h"
#include "fuse/kill_points.h"
#include "fuse/libfuse.h"
#include "fuse/mount_context.h"
#include "fuse/op_boundary.h"
#include "fuse/request_seal.h"
#include "fuse/unmount.h"
#include "store/error.h"
#include "store/file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstring>

namespace lamina::unionfs {
namespace {

constexpr std::size_t kSpareBuffers = 8;
thread_local RawRequest current_request;
thread_local Inbox* current_inbox = nullptr;
thread_local std::unique_ptr<LockedBuffer> put_off;  // What holds the current request when it is to be tried again.
thread_local bool is_second_try = false;

// libfuse's own words about a mount that failed; there is one mount in a process.
std::string last_libfuse_message;

void remember_message(fuse_log_level, const char* format, va_list arguments) {
    std::array<char, 512> text{};
    std::vsnprintf(text.data(), text.size(), format, arguments);
    last_libfuse_message = text.data();
    while (!last_libfuse_message.empty() && last_libfuse_message.back() == '\n') last_libfuse_message.pop_back();
}

/// A number that no other living thread has.
class ThreadPlace {
public:
    ThreadPlace() noexcept {
        while (number < SessionPage::kThreads && taken_[number].exchange(true)) ++number;
    }
    ~ThreadPlace() {
        if (number < SessionPage::kThreads) taken_[number] = false;
    }
    ThreadPlace(const ThreadPlace&) = delete;
    ThreadPlace& operator=(const ThreadPlace&) = delete;

    std::size_t number = 0;  ///< SessionPage::kThreads: there is none.

private:
    static inline std::array<std::atomic<bool>, SessionPage::kThreads> taken_{};
};

std::string option_value(std::string text) {
    for (char& letter : text) {
        if (letter == ',' || letter == '\\' || static_cast<unsigned char>(letter) <= ' ') letter = '_';
    }
    return text;
}

/// What to do when a mount was refused for a reason that has a remedy; empty when there is none to tell.
std::string mount_advice() {
    if (::access("/dev/fuse", F_OK) != 0) return "; there is no /dev/fuse: load the kernel module fuse";
    if (::access("/dev/fuse", R_OK | W_OK) != 0) {
        return "; this user may not open /dev/fuse, which is mode 0666 on most systems: chmod 666 /dev/fuse";
    }
    if (::geteuid() != 0 && ::access("/usr/bin/fusermount3", X_OK) != 0) {
        return "; users mount through fusermount3: install the package fuse3";
    }
    return "";
}

std::string mount_options(const MountSpec& spec) {
    std::string options = "default_permissions,subtype=lamina,fsname=" + option_value(spec.source);
    options += spec.is_read_only ? ",ro" : ",rw";
    if (spec.allows_others) options += ",allow_other";
    if (spec.allows_set_id) options += ",suid";
    if (spec.allows_devices) options += ",dev";
    for (const auto& flag : spec.flags) options += "," + flag;
    return options;
}

}  // namespace

const fuse_in_header& Inbox::header() const {
    return *reinterpret_cast<const fuse_in_header*>(buffer->bytes().data());
}

InHand::InHand(SessionPage& page, std::uint64_t unique) noexcept {
    static thread_local const ThreadPlace place;
    place_ = place.number < page.in_hand.size() ? &page.in_hand[place.number] : nullptr;
    if (place_) place_->store(unique & ~kResentBit, std::memory_order_relaxed);
}

InHand::~InHand() {
    if (place_) place_->store(0, std::memory_order_relaxed);
}

void note_suspects(SessionPage& page) noexcept {
    const bool is_killed = page.death == static_cast<std::uint64_t>(SessionPage::Death::killed);
    for (SessionPage::Word& in_hand : page.in_hand) {
        const std::uint64_t unique = in_hand;
        if (unique != 0 && !is_killed) {
            const auto known =
                std::ranges::find_if(page.suspects, [&](const auto& one) { return one.unique == unique; });
            const auto least =
                std::ranges::min_element(page.suspects, {}, [](const auto& one) { return one.deaths.load(); });
            auto& suspect = known != page.suspects.end() ? *known : *least;
            if (known == page.suspects.end()) suspect.deaths = 0;
            suspect.unique = unique;
            suspect.deaths = suspect.deaths + 1;
        }
        in_hand = 0;
    }
}

Transport::Transport(const Handlers& handlers, Arena& arena, MountContext& context)
    : handlers_(handlers),
      arena_(arena),
      page_(session_page(arena)),
      context_(context),
      buffers_(init::kRequestBytes, kSpareBuffers),
      counts_(page_.request_counts) {}

Transport::~Transport() {
    if (session_ != nullptr) ::fuse_session_destroy(session_);  // Closes the descriptor.
}

void Transport::make_session(const MountSpec& spec) {
    const std::string options = mount_options(spec);
    std::vector<std::string> words = {"lamina-fuse", "-o", options};
    if (spec.is_debug) words.emplace_back("-d");
    std::vector<char*> pointers;
    for (auto& word : words) pointers.push_back(word.data());
    fuse_args arguments = {.argc = static_cast<int>(pointers.size()), .argv = pointers.data(), .allocated = 0};
    if (!spec.is_debug) ::fuse_set_log_func(remember_message);
    session_ = ::fuse_session_new(&arguments, &handlers_.operations, sizeof handlers_.operations, &context_);
    if (session_ == nullptr) throw store::Error(store::Errc::internal, "libfuse: " + last_libfuse_message);
    mountpoint_ = spec.mountpoint;
    allows_resend_ = spec.allows_resend;
}

void Transport::use_descriptor(int fd) {
    fd_ = fd;
    ::fcntl(fd_, F_SETFD, FD_CLOEXEC);
    fuse_custom_io io{};
    io.writev = write_for_libfuse;
    io.read = [](int from, void* to, size_t size_bytes, void*) { return ::read(from, to, size_bytes); };
    if (::fuse_session_custom_io(session_, &io, fd_) != 0) {
        throw store::Error(store::Errc::internal, "libfuse refuses custom input and output");
    }
}

void Transport::mount(const MountSpec& spec) {
    make_session(spec);
    if (::fuse_session_mount(session_, spec.mountpoint.c_str()) != 0) {
        mountpoint_.clear();
        const std::string why = last_libfuse_message.empty() ? "fusermount3 refused it" : last_libfuse_message;
        throw store::Error(store::Errc::unavailable,
                           fmt::format("mount on {}: {}{}", spec.mountpoint, why, mount_advice()));
    }
    use_descriptor(::fuse_session_fd(session_));
}

void Transport::take_over(store::UniqueFd fuse, const MountSpec& spec) {
    make_session(spec);
    use_descriptor(fuse.release());
    is_taking_over_ = true;
    is_settled_ = false;
    note_suspects(page_);
    replay_init();
    ask_for_unanswered();
    owes_first_reply_ = true;
}

void Transport::replay_init() {
    struct Packet {
        fuse_in_header header{};
        fuse_init_in body{};
    } packet;
    static_assert(sizeof(Packet) == sizeof(fuse_in_header) + sizeof(fuse_init_in));
    packet.header.len = sizeof packet;
    packet.header.opcode = FUSE_INIT;
    packet.header.unique = page_.init_unique;
    std::memcpy(&packet.body, page_.init_request.data(), sizeof packet.body);
    std::memcpy(&init_reply_, page_.init_reply.data(), sizeof init_reply_);
    const RawRequest request{.header = packet.header, .body = std::as_bytes(std::span(&packet.body, 1))};
    note_init(request);
    fuse_buf buffer{};
    buffer.mem = &packet;
    buffer.size = sizeof packet;
    ::fuse_session_process_buf(session_, &buffer);
    if (!is_serving_) throw store::Error(store::Errc::internal, "libfuse does not take the INIT of the connection");
}

void Transport::ask_for_unanswered() {
    fuse_out_header notification{};
    notification.len = sizeof notification;
    notification.error = kernel::kNotifyResend;
    if (::write(fd_, &notification, sizeof notification) == sizeof notification) return;
    if (errno == EINVAL) {
        throw store::Error(store::Errc::unsupported, "this kernel cannot send unanswered requests again");
    }
    // Unmounted or aborted meanwhile: the first receive() says so.
}

// Not fuse_session_unmount(): it closes the descriptor first, under the feet of the reading threads, and what
// unmounting writes back would have no server.
void Transport::unmount(bool is_lazy) {
    if (mountpoint_.empty()) return;
    const int error_number = unmount_path(mountpoint_, is_lazy);
    if (error_number == EINVAL || error_number == 0) return;  // Was not mounted any more.
    if (error_number == EBUSY) throw store::Error(store::Errc::busy, mountpoint_ + ": files are open in it");
    store::throw_errno(error_number, "unmount " + mountpoint_);
}

Inbox Transport::make_inbox() {
    return {.buffer = std::make_unique<LockedBuffer>(init::kRequestBytes)};
}

Transport::Received Transport::receive(Inbox& inbox) noexcept {
    const auto room = inbox.buffer->bytes();
    if (g_left_out.locks) ::madvise(room.data(), room.size(), MADV_DONTNEED);
    const ssize_t got = ::read(fd_, room.data(), room.size());
    if (got < 0) {
        // ENOENT: the request was taken back before we had it.
        if (errno == EINTR || errno == EAGAIN || errno == ENOENT) return Received::interrupted;
        return Received::ended;
    }
    inbox.size_bytes = static_cast<std::size_t>(got);
    if (inbox.size_bytes < sizeof(fuse_in_header)) return Received::ended;
    counts_.count(inbox.header().opcode);
    return Received::request;
}

bool Transport::has_waiting_request() const noexcept {
    pollfd waiting{.fd = fd_, .events = POLLIN, .revents = 0};
    return ::poll(&waiting, 1, 0) > 0 && (waiting.revents & (POLLIN | POLLERR | POLLHUP)) != 0;
}

bool Transport::is_connected() const noexcept {
    pollfd looked_at{.fd = fd_, .events = 0, .revents = 0};
    return ::poll(&looked_at, 1, 0) == 0;
}

void Transport::note_init(const RawRequest& request) {
    init_unique_ = request.header.unique;
    std::memcpy(&init_request_, request.body.data(), std::min(request.body.size(), sizeof init_request_));
}

void Transport::process(Inbox& inbox) noexcept {
    const auto packet = inbox.buffer->bytes().first(inbox.size_bytes);
    current_request.header = inbox.header();
    current_request.body = packet.subspan(sizeof(fuse_in_header));
    const fuse_in_header& header = current_request.header;
    const InHand in_hand(page_, header.unique);
    kill_point(KillPoint::received);
    if (!is_settled()) settle(header);
    if ((header.unique & kResentBit) != 0 && answer_resent(current_request)) return;
    kill_point(KillPoint::accepted);
    const RequestSeal seal(header.unique & ~kResentBit);
    current_inbox = &inbox;
    if (header.opcode == FUSE_INIT && current_request.body.size() >= offsetof(fuse_init_in, flags2)) {
        note_init(current_request);
    }
    if (!is_serving_.load(std::memory_order_relaxed) || !handlers_.raw(context_, current_request)) {
        fuse_buf buffer{};
        buffer.mem = packet.data();
        buffer.size = packet.size();
        ::fuse_session_process_buf(session_, &buffer);
    }
    current_inbox = nullptr;
    if (put_off) process_later(std::move(put_off), inbox.size_bytes);
}

/// A disk or quota that is full may have room as soon as the kernel has forgotten what was removed before. Its word may
/// be what this thread reads next, so a worker waits for it and tries once more. True: no reply yet.
bool Transport::puts_off(const fuse_out_header& reply) noexcept {
    const bool is_full = reply.error == -ENOSPC || reply.error == -EDQUOT;
    const bool may_be_repeated = current_inbox != nullptr && !is_second_try && !RequestSeal::is_sealed();
    if (!is_full || !may_be_repeated || !context_.fs->awaits_forget()) return false;
    put_off = keep_current();
    return put_off != nullptr;
}

void Transport::process_later(std::unique_ptr<LockedBuffer> buffer, std::size_t size_bytes) noexcept {
    Inbox inbox{.buffer = std::move(buffer), .size_bytes = size_bytes};
    const auto try_again = [this](Inbox& again) {
        is_second_try = true;
        process(again);
        is_second_try = false;
        buffers_.give_back(std::move(again.buffer));
    };
    std::shared_ptr<Inbox> shared;
    try {
        shared = std::make_shared<Inbox>(std::move(inbox));
        context_.workers->run([this, shared, try_again] {
            context_.fs->wait_for_forget(kForgetPatience);
            try_again(*shared);
        });
    } catch (...) {  // No memory for the task: without the wait, then.
        try_again(shared ? *shared : inbox);
    }
}

/// The kernel gives out what it sends again before anything that is new, but for what needs no reply.
void Transport::settle(const fuse_in_header& header) noexcept {
    const bool needs_no_reply =
        header.opcode == FUSE_FORGET || header.opcode == FUSE_BATCH_FORGET || header.opcode == FUSE_INTERRUPT;
    if ((header.unique & kResentBit) != 0 || needs_no_reply) return;
    arena_.forget_former_answers();
    is_settled_ = true;
}

/// What another server had in hand when it died: perhaps it is done, perhaps it was the cause.
bool Transport::answer_resent(const RawRequest& request) noexcept {
    const std::uint64_t unique = request.header.unique & ~kResentBit;
    for (const SessionPage::Suspect& suspect : page_.suspects) {
        if (suspect.unique != unique || suspect.deaths < kDeathsOfPoison) continue;
        log_failure(context_, request, "it has killed the server too often");
        reply(request.header.unique, EIO);
        return true;
    }
    const auto sealed = arena_.sealed(unique);
    if (!sealed) return false;
    handlers_.done_before(context_, request, sealed->value);
    arena_.answered(sealed->slot, unique);
    return true;
}

const RawRequest& Transport::current() noexcept {
    return current_request;
}

std::unique_ptr<LockedBuffer> Transport::keep_current() {
    if (current_inbox == nullptr) return nullptr;
    auto spare = buffers_.take();
    if (!spare) return nullptr;
    std::swap(spare, current_inbox->buffer);
    return spare;
}

void Transport::reply(std::uint64_t unique, int error_number, std::span<const std::byte> body) noexcept {
    fuse_out_header header{};
    header.len = static_cast<std::uint32_t>(sizeof header + body.size());
    header.error = -error_number;
    header.unique = unique;
    std::array<iovec, 2> parts = {iovec{&header, sizeof header},
                                  iovec{const_cast<std::byte*>(body.data()), body.size()}};
    write_reply(parts.data(), body.empty() ? 1 : 2);
}

ssize_t Transport::write_for_libfuse(int, iovec* parts, int count, void* userdata) {
    return static_cast<MountContext*>(userdata)->transport->write_reply(parts, count);
}

ssize_t Transport::write_reply(iovec* parts, int count) {
    if (!is_serving_.load(std::memory_order_relaxed)) return write_init_reply(parts, count);
    const auto& header = *static_cast<const fuse_out_header*>(parts[0].iov_base);
    if (header.error != 0 && puts_off(header)) return static_cast<ssize_t>(header.len);
    kill_point(KillPoint::before_reply);
    const ssize_t written = ::writev(fd_, parts, count);
    const int error_number = errno;
    kill_point(KillPoint::after_reply);
    page_.progress.fetch_add(1, std::memory_order_relaxed);
    if (owes_first_reply_.load(std::memory_order_relaxed) && owes_first_reply_.exchange(false)) {
        page_.last_gap_ns = monotonic_ns() - page_.died_at_ns;
    }
    errno = error_number;
    return written;
}

ssize_t Transport::write_init_reply(iovec* parts, int count) {
    auto* const header = static_cast<fuse_out_header*>(parts[0].iov_base);
    const bool is_agreement = count == 2 && header->unique == init_unique_ && header->error == 0 &&
                              parts[1].iov_len == sizeof(fuse_init_out) && init_request_.major == FUSE_KERNEL_VERSION;
    if (is_taking_over_) {  // The kernel has had its reply from the first server.
        is_serving_ = is_agreement;
        return static_cast<ssize_t>(header->len);
    }
    if (!is_agreement) return ::writev(fd_, parts, count);
    fuse_init_out reply{};
    std::memcpy(&reply, parts[1].iov_base, sizeof reply);
    init_reply_ = init::make_reply(init_request_, reply);
    if (!allows_resend_) init_reply_.flags2 &= ~static_cast<std::uint32_t>(kernel::kHasResend >> 32);
    parts[1].iov_base = &init_reply_;
    page_.init_unique = init_unique_;
    std::memcpy(page_.init_request.data(), &init_request_, sizeof init_request_);
    std::memcpy(page_.init_reply.data(), &init_reply_, sizeof init_reply_);
    page_.can_resend = (init_reply_.flags2 & (kernel::kHasResend >> 32)) != 0 ? 1 : 0;
    is_serving_.store(true);  // Before the reply: the next request may be here as soon as it is written.
    const ssize_t written = ::writev(fd_, parts, count);
    if (on_serving_) on_serving_();
    return written;
}

bool user_may_allow_others(const std::string& fuse_conf_path) {
    constexpr std::uint64_t kLimitBytes = 64 * 1024;
    if (!store::exists(fuse_conf_path)) return false;
    const auto bytes = store::read_file(fuse_conf_path, kLimitBytes);
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t end = std::min(text.find('\n', begin), text.size());
        std::string_view line = text.substr(begin, end - begin);
        while (!line.empty() && (line.back() == ' ' || line.back() == '\t' || line.back() == '\r'))
            line.remove_suffix(1);
        while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
        if (line == "user_allow_other") return true;
        begin = end + 1;
    }
    return false;
}

}  // namespace lamina::unionfs
