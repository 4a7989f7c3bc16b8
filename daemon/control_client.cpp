#include "daemon/control_client.h"

#include "store/error.h"
#include "store/file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace lamina::daemon {

namespace json = boost::json;

namespace {

constexpr std::size_t kMaxReplyBytes = 1 << 20;

/// A path through the folder's descriptor: short, whatever the store's path is.
store::UniqueFd connect_to(const std::string& mount_folder) {
    const store::UniqueFd folder(::open(mount_folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!folder) store::throw_errno(errno, "open " + mount_folder);
    store::UniqueFd server(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!server) store::throw_errno(errno, "socket");
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = "/proc/self/fd/" + std::to_string(folder.get()) + "/control";
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    if (::connect(server.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        throw store::Error(store::Errc::unavailable,
                           "the mount's server does not answer (" + std::string(std::strerror(errno)) + ")");
    }
    return server;
}

std::string read_line(int fd, std::chrono::steady_clock::time_point end) {
    std::string line;
    std::array<char, 4096> piece;
    while (line.find('\n') == std::string::npos && line.size() < kMaxReplyBytes) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
        pollfd waiting{.fd = fd, .events = POLLIN, .revents = 0};
        if (left.count() <= 0 || ::poll(&waiting, 1, static_cast<int>(left.count())) == 0) {
            throw store::Error(store::Errc::timed_out, "the mount's server gives no reply");
        }
        const ssize_t got = ::read(fd, piece.data(), piece.size());
        if (got == 0) break;
        if (got > 0) line.append(piece.data(), static_cast<std::size_t>(got));
        if (got < 0 && errno != EINTR && errno != EAGAIN) store::throw_errno(errno, "read from the mount's server");
    }
    return line.substr(0, line.find('\n'));
}

store::Errc code_of(const json::object& reply) {
    const json::value* const code = reply.if_contains("code");
    for (const store::Errc known : {store::Errc::malformed, store::Errc::read_only, store::Errc::no_space}) {
        if (code && code->is_string() && code->get_string() == store::errc_name(known)) return known;
    }
    return store::Errc::busy;
}

}  // namespace

json::object ask_server(const std::string& mount_folder, std::string_view what, std::chrono::milliseconds limit) {
    return ask_server(mount_folder, json::object{{"ask", what}}, limit);
}

json::object ask_server(const std::string& mount_folder, const json::object& question,
                        std::chrono::milliseconds limit) {
    const auto end = std::chrono::steady_clock::now() + limit;
    const store::UniqueFd server = connect_to(mount_folder);
    const std::string request = json::serialize(question) + "\n";
    if (::send(server.get(), request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) {
        throw store::Error(store::Errc::unavailable, "the mount's server does not take requests");
    }
    json::error_code error;
    const json::value reply = json::parse(read_line(server.get(), end), error);
    if (error || !reply.is_object()) throw store::Error(store::Errc::unavailable, "the mount's server is going away");
    const json::value* const is_good = reply.as_object().if_contains("ok");
    if (is_good && is_good->is_bool() && is_good->get_bool()) return reply.as_object();
    const json::value* const why = reply.as_object().if_contains("error");
    throw store::Error(code_of(reply.as_object()),
                       why && why->is_string() ? std::string(why->get_string()) : "refused");
}

bool is_running(const std::string& mount_folder) {
    const store::UniqueFd lock(::open((mount_folder + "/lock").c_str(), O_RDONLY | O_CLOEXEC));
    if (!lock) return false;
    if (::flock(lock.get(), LOCK_SH | LOCK_NB) == 0) return false;
    return errno == EWOULDBLOCK;
}

}  // namespace lamina::daemon
