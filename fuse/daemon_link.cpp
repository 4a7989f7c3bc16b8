#include "fuse/daemon_link.h"

#include "store/error.h"
#include "store/file.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>

namespace lamina::unionfs {

namespace {

using Clock = std::chrono::steady_clock;
using store::Errc;
using store::Error;

constexpr std::chrono::milliseconds kPause{200};
constexpr std::size_t kMaxReplyBytes = 64 << 10;

timeval time_of(std::chrono::milliseconds limit) {
    const auto left = std::max<std::chrono::milliseconds::rep>(limit.count(), 1);
    return {.tv_sec = left / 1000, .tv_usec = left % 1000 * 1000};
}

store::UniqueFd connect_to(const std::string& path, std::chrono::milliseconds limit) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof address.sun_path) throw Error(Errc::unavailable, "no daemon");
    std::copy(path.begin(), path.end(), address.sun_path);
    store::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) store::throw_errno(errno, "socket");
    const timeval time = time_of(limit);
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        throw Error(Errc::unavailable, path + ": no daemon answers: " + std::strerror(errno));
    }
    return fd;
}

// The daemon keeps the connection: its reply ends where its header says. With the header of a good one the chunk is
// there.
bool is_complete(const std::string& reply) {
    constexpr std::string_view kLength = "Content-Length: ";
    const std::size_t end = reply.find("\r\n\r\n");
    if (end == std::string::npos) return false;
    const std::size_t length = reply.find(kLength);
    if (length > end) return true;
    return reply.size() >= end + 4 + std::strtoul(reply.c_str() + length + kLength.size(), nullptr, 10);
}

int status_of(const std::string& reply) {
    constexpr std::size_t kStatusAt = 9;  // "HTTP/1.1 200 ..."
    if (!reply.starts_with("HTTP/1.") || reply.size() < kStatusAt + 3) return 0;
    return std::atoi(reply.substr(kStatusAt, 3).c_str());
}

}  // namespace

void ReadChunks::add(const store::ChunkId& chunk) noexcept {
    std::uint64_t prefix = 0;
    for (const std::byte byte : chunk.digest.bytes().first<kPrefixBytes>()) {
        prefix = prefix << 8 | std::to_integer<std::uint64_t>(byte);
    }
    try {
        const std::lock_guard lock(mutex_);
        if (prefixes_.size() == kMostChunks || !prefixes_.insert(prefix).second) return;
        const auto now = std::chrono::steady_clock::now();
        if (in_order_.empty()) begun_at_ = now;
        in_order_.push_back(prefix);
        if (now - begun_at_ <= kStart) start_count_ = in_order_.size();
    } catch (const std::bad_alloc&) {  // Then it is not known that it was read.
    }
}

ReadChunks::Seen ReadChunks::seen() const {
    const std::lock_guard lock(mutex_);
    Seen seen{.text = {}, .start_count = start_count_};
    for (const std::uint64_t prefix : in_order_) seen.text += fmt::format("{:016x}", prefix);
    return seen;
}

std::string DaemonLink::ask(const std::string& request, std::chrono::milliseconds limit) const {
    const std::vector<std::byte> path = store::read_file(store_root_ + "/socket", 4096);
    const auto fd = connect_to({reinterpret_cast<const char*>(path.data()), path.size()}, limit);
    std::string_view rest = request;
    while (!rest.empty()) {
        const ssize_t count = ::send(fd.get(), rest.data(), rest.size(), MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) throw Error(Errc::unavailable, "the daemon went away");
        rest.remove_prefix(static_cast<std::size_t>(count));
    }
    std::string reply;
    std::array<char, 4096> piece;
    while (!is_complete(reply) && reply.size() < kMaxReplyBytes) {
        const ssize_t count = ::recv(fd.get(), piece.data(), piece.size(), 0);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            throw Error(Errc::timed_out, "the daemon does not answer");
        if (count <= 0) break;
        reply.append(piece.data(), static_cast<std::size_t>(count));
    }
    return reply;
}

void DaemonLink::fetch(const store::ChunkId& chunk) {
    const std::string body = R"({"mount":")" + mount_id_ + R"(","chunk":")" + chunk.digest.text() + R"("})";
    const std::string request =
        "POST /v1/fetch HTTP/1.1\r\nHost: lamina\r\nContent-Type: application/json\r\n"
        "Content-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body;
    const auto end = Clock::now() + limit_;
    while (true) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
        std::string reply;
        try {
            reply = ask(request, left);
        } catch (const Error& error) {  // Daemons end and begin again.
            const bool may_pass = error.code() == Errc::unavailable || error.code() == Errc::not_found;
            if (!may_pass || left <= kPause) throw Error(Errc::timed_out, std::string("fetch: ") + error.what());
        }
        const int status = status_of(reply);
        if (status == 200) return;
        const std::size_t text = reply.find("\r\n\r\n");
        const std::string said = text == std::string::npos ? "no reply" : reply.substr(text + 4);
        if (status == 404) throw Error(Errc::not_found, "fetch: " + said);
        const bool may_pass = status == 0 || status == 503 || status == 504;
        if (!may_pass) throw Error(Errc::corrupt, "fetch: " + said);
        if (left <= kPause) throw Error(Errc::timed_out, "fetch: " + said);
        std::this_thread::sleep_for(kPause);
    }
}

}  // namespace lamina::unionfs
