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
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <utility>

namespace lamina::unionfs {

namespace {

using Clock = std::chrono::steady_clock;
using store::Errc;
using store::Error;

constexpr std::chrono::milliseconds kPause{200};
constexpr std::size_t kMaxReplyBytes = 512 << 10;  // A chunk is half of that at most.

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

constexpr std::string_view kEndOfLine = "\r\n";
constexpr std::string_view kEndOfHeader = "\r\n\r\n";

/// What is at the beginning of a chunked body; nullopt: not all of it.
std::optional<std::string> joined_pieces(std::string_view rest) {
    std::string body;
    while (true) {
        std::size_t size = 0;
        const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), size, 16);
        const auto digits = static_cast<std::size_t>(end - rest.data());
        const bool is_whole = error == std::errc() && rest.substr(digits).starts_with(kEndOfLine) &&
                              rest.size() - digits - kEndOfLine.size() >= kEndOfLine.size() &&
                              rest.size() - digits - 2 * kEndOfLine.size() >= size;
        if (!is_whole) return std::nullopt;
        if (size == 0) return body;
        rest.remove_prefix(digits + kEndOfLine.size());
        body.append(rest.substr(0, size));
        rest.remove_prefix(size + kEndOfLine.size());
    }
}

/// The daemon keeps the connection: its reply ends where its header, or the last piece, says. nullopt: not yet.
std::optional<std::string> body_of(std::string_view reply) {
    constexpr std::string_view kLength = "Content-Length: ";
    const std::size_t end = reply.find(kEndOfHeader);
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view header = reply.substr(0, end + kEndOfLine.size());
    const std::string_view rest = reply.substr(end + kEndOfHeader.size());
    const std::size_t found = header.find(kLength);
    if (found == std::string_view::npos) return joined_pieces(rest);
    std::size_t length = 0;
    const std::string_view digits = header.substr(found + kLength.size());
    std::from_chars(digits.data(), digits.data() + digits.size(), length);
    if (rest.size() < length) return std::nullopt;
    return std::string(rest.substr(0, length));
}

int status_of(const std::string& reply) {
    constexpr std::size_t kStatusAt = 9;  // "HTTP/1.1 200 ..."
    if (!reply.starts_with("HTTP/1.") || reply.size() < kStatusAt + 3) return 0;
    return std::atoi(reply.substr(kStatusAt, 3).c_str());
}

}  // namespace

void ReadChunks::add(const store::ChunkId& chunk) noexcept {
    if (is_over_.load(std::memory_order_relaxed)) return;
    std::uint64_t prefix = 0;
    for (const std::byte byte : chunk.digest.bytes().first<kPrefixBytes>()) {
        prefix = prefix << 8 | std::to_integer<std::uint64_t>(byte);
    }
    try {
        const std::lock_guard lock(mutex_);
        const auto now = std::chrono::steady_clock::now();
        if (in_order_.empty()) begun_at_ = now;
        const bool is_start = now - begun_at_ <= kStart;
        if (prefixes_.size() == kMostChunks || (!is_start && until_ == Until::start_is_over)) {
            is_over_.store(true, std::memory_order_relaxed);
            return;
        }
        if (!prefixes_.insert(prefix).second) return;
        in_order_.push_back(prefix);
        if (is_start) start_count_ = in_order_.size();
    } catch (const std::bad_alloc&) {  // Then it is not known that it was read.
    }
}

ReadChunks::Seen ReadChunks::seen() const {
    const std::lock_guard lock(mutex_);
    Seen seen{.text = {}, .start_count = start_count_};
    for (const std::uint64_t prefix : in_order_) seen.text += fmt::format("{:016x}", prefix);
    return seen;
}

DaemonLink::Reply DaemonLink::ask(const std::string& request, std::chrono::milliseconds limit) const {
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
    std::array<char, 16384> piece;
    while (true) {
        if (auto body = body_of(reply)) return {status_of(reply), std::move(*body)};
        if (reply.size() >= kMaxReplyBytes) return {};
        const ssize_t count = ::recv(fd.get(), piece.data(), piece.size(), 0);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            throw Error(Errc::timed_out, "the daemon does not answer");
        if (count <= 0) return {};
        reply.append(piece.data(), static_cast<std::size_t>(count));
    }
}

std::vector<std::byte> DaemonLink::fetch(const store::ChunkId& chunk) {
    const std::string body =
        R"({"mount":")" + mount_id_ + R"(","chunk":")" + chunk.digest.text() + R"(","bytes":true})";
    const std::string request =
        "POST /v1/fetch HTTP/1.1\r\nHost: lamina\r\nContent-Type: application/json\r\n"
        "Content-Length: " +
        std::to_string(body.size()) + "\r\n\r\n" + body;
    const auto end = Clock::now() + limit_;
    while (true) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
        Reply reply;
        try {
            reply = ask(request, left);
        } catch (const Error& error) {  // Daemons end and begin again.
            const bool may_pass = error.code() == Errc::unavailable || error.code() == Errc::not_found;
            if (!may_pass || left <= kPause) throw Error(Errc::timed_out, std::string("fetch: ") + error.what());
        }
        if (reply.status == 200) {
            const auto bytes = std::as_bytes(std::span(reply.body));
            if (!bytes.empty() && store::Digest::of(bytes) != chunk.digest)
                throw Error(Errc::corrupt, "fetch: the daemon gave other bytes than those of " + chunk.digest.text());
            return {bytes.begin(), bytes.end()};
        }
        const std::string said = reply.status == 0 ? "no reply" : reply.body;
        if (reply.status == 404) throw Error(Errc::not_found, "fetch: " + said);
        const bool may_pass = reply.status == 0 || reply.status == 503 || reply.status == 504;
        if (!may_pass) throw Error(Errc::corrupt, "fetch: " + said);
        if (left <= kPause) throw Error(Errc::timed_out, "fetch: " + said);
        std::this_thread::sleep_for(kPause);
    }
}

}  // namespace lamina::unionfs
