// libfuse takes requests apart and puts replies together; reading and writing /dev/fuse is ours. A reading thread reads
// into its inbox, process() looks at the opcode: those that libfuse 3.14 cannot answer go to the raw handler, all
// others to fuse_session_process_buf(), which calls an operation of ops.cpp. Replies come back through libfuse's custom
// I/O, where the one to INIT is replaced by what init_table.h says: libfuse would not agree on flags that it does not
// know.
//
// The kernel sends INIT first and nothing else before its reply, so that the fields about it need no lock.
#include "fuse/transport.h"

#include "fuse/init_table.h"
#include "fuse/libfuse.h"
#include "fuse/mount_context.h"
#include "fuse/unmount.h"
#include "store/error.h"
#include "store/file.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstring>

namespace lamina::unionfs {
namespace {

constexpr std::size_t kSpareBuffers = 8;
thread_local RawRequest current_request;
thread_local Inbox* current_inbox = nullptr;

// libfuse's own words about a mount that failed; there is one mount in a process.
std::string last_libfuse_message;

void remember_message(fuse_log_level, const char* format, va_list arguments) {
    std::array<char, 512> text{};
    std::vsnprintf(text.data(), text.size(), format, arguments);
    last_libfuse_message = text.data();
    while (!last_libfuse_message.empty() && last_libfuse_message.back() == '\n') last_libfuse_message.pop_back();
}

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

Transport::Transport(const fuse_lowlevel_ops& operations, RawHandler raw, MountContext& context)
    : raw_(raw), context_(context), operations_(operations), buffers_(init::kRequestBytes, kSpareBuffers) {}

Transport::~Transport() {
    if (session_ != nullptr) ::fuse_session_destroy(session_);  // Closes the descriptor.
}

void Transport::mount(const MountSpec& spec) {
    const std::string options = mount_options(spec);
    std::vector<std::string> words = {"lamina-fuse", "-o", options};
    if (spec.is_debug) words.emplace_back("-d");
    std::vector<char*> pointers;
    for (auto& word : words) pointers.push_back(word.data());
    fuse_args arguments = {.argc = static_cast<int>(pointers.size()), .argv = pointers.data(), .allocated = 0};
    if (!spec.is_debug) ::fuse_set_log_func(remember_message);
    session_ = ::fuse_session_new(&arguments, &operations_, sizeof operations_, &context_);
    if (session_ == nullptr) throw store::Error(store::Errc::internal, "libfuse: " + last_libfuse_message);
    if (::fuse_session_mount(session_, spec.mountpoint.c_str()) != 0) {
        const std::string why = last_libfuse_message.empty() ? "fusermount3 refused it" : last_libfuse_message;
        throw store::Error(store::Errc::unavailable,
                           fmt::format("mount on {}: {}{}", spec.mountpoint, why, mount_advice()));
    }
    mountpoint_ = spec.mountpoint;
    fd_ = ::fuse_session_fd(session_);
    ::fcntl(fd_, F_SETFD, FD_CLOEXEC);
    fuse_custom_io io{};
    io.writev = write_for_libfuse;
    io.read = [](int fd, void* to, size_t size_bytes, void*) { return ::read(fd, to, size_bytes); };
    if (::fuse_session_custom_io(session_, &io, fd_) != 0) {
        throw store::Error(store::Errc::internal, "libfuse refuses custom input and output");
    }
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

void Transport::process(Inbox& inbox) noexcept {
    const auto packet = inbox.buffer->bytes().first(inbox.size_bytes);
    current_request.header = inbox.header();
    current_request.body = packet.subspan(sizeof(fuse_in_header));
    current_inbox = &inbox;
    if (current_request.header.opcode == FUSE_INIT && current_request.body.size() >= offsetof(fuse_init_in, flags2)) {
        init_unique_ = current_request.header.unique;
        std::memcpy(&init_request_, current_request.body.data(),
                    std::min(current_request.body.size(), sizeof init_request_));
    }
    if (!is_serving_.load(std::memory_order_relaxed) || !raw_(context_, current_request)) {
        fuse_buf buffer{};
        buffer.mem = packet.data();
        buffer.size = packet.size();
        ::fuse_session_process_buf(session_, &buffer);
    }
    current_inbox = nullptr;
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
    return ::writev(fd_, parts, count);
}

ssize_t Transport::write_init_reply(iovec* parts, int count) {
    auto* const header = static_cast<fuse_out_header*>(parts[0].iov_base);
    const bool is_agreement = count == 2 && header->unique == init_unique_ && header->error == 0 &&
                              parts[1].iov_len == sizeof(fuse_init_out) && init_request_.major == FUSE_KERNEL_VERSION;
    if (!is_agreement) return ::writev(fd_, parts, count);
    fuse_init_out reply{};
    std::memcpy(&reply, parts[1].iov_base, sizeof reply);
    init_reply_ = init::make_reply(init_request_, reply);
    parts[1].iov_base = &init_reply_;
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
