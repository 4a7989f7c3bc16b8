// One thread accepts, each connection has one more. A thread waits in poll(2) for its connection and for the stop
// event, so that the destructor can end it between two lines; an answer in progress is finished and sent first. Output
// goes with a time limit: a client that does not read loses its connection, and holds up only itself.
#include "fuse/control.h"

#include "fuse/json_text.h"
#include "store/error.h"
#include "store/file.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <list>
#include <mutex>
#include <thread>

namespace lamina::unionfs {
namespace {

constexpr int kSendLimitMs = 5000;
constexpr const char* kName = "control";

/// The socket's address. A path that is too long for one is reached through a descriptor of its folder.
struct Address {
    sockaddr_un name{};
    store::UniqueFd folder;
    explicit Address(const std::string& folder_path) {
        name.sun_family = AF_UNIX;
        std::string path = folder_path + "/" + kName;
        if (path.size() >= sizeof name.sun_path) {
            folder = store::UniqueFd(::open(folder_path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
            if (!folder) store::throw_errno(errno, "open " + folder_path);
            path = fmt::format("/proc/self/fd/{}/{}", folder.get(), kName);
        }
        path.copy(name.sun_path, sizeof name.sun_path - 1);
    }
    const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&name); }
};

store::UniqueFd make_socket() {
    store::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) store::throw_errno(errno, "socket");
    return fd;
}

bool is_allowed(int connection) {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
    return peer.uid == 0 || peer.uid == ::geteuid();
}

bool send_all(int connection, std::string_view text) {
    while (!text.empty()) {
        pollfd writable{.fd = connection, .events = POLLOUT, .revents = 0};
        if (::poll(&writable, 1, kSendLimitMs) <= 0) return false;
        const ssize_t sent = ::send(connection, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            if (errno == EINTR || errno == EAGAIN) continue;
            return false;
        }
        text.remove_prefix(static_cast<std::size_t>(sent));
    }
    return true;
}

std::string failure(std::string_view code, std::string_view what) {
    return JsonObject().flag("ok", false).text("code", code).text("error", what).str();
}

std::string answer_line(ControlSession& session, std::string_view line) {
    const auto members = parse_flat_json(line);
    if (!members || !members->contains("ask")) {
        return failure("malformed", "expected a line like {\"ask\":\"stats\"}");
    }
    try {
        return session.answer(members->at("ask"), *members);
    } catch (const store::Error& error) {
        return failure(store::errc_name(error.code()), error.what());
    } catch (const std::exception& error) {
        return failure("internal", error.what());
    }
}

}  // namespace

class ControlSocket::Impl {
public:
    Impl(const std::string& folder, store::UniqueFd listener, MakeSession make_session)
        : path_(folder + "/" + kName), make_session_(std::move(make_session)), listener_(std::move(listener)) {
        stop_ = store::UniqueFd(::eventfd(0, EFD_CLOEXEC));
        if (!stop_) store::throw_errno(errno, "eventfd");
        if (!listener_) bind_in(folder);
        acceptor_ = std::jthread([this] { accept_all(); });
    }
    ~Impl() {
        const std::uint64_t one = 1;
        if (::write(stop_.get(), &one, sizeof one) < 0) {
            // An eventfd takes a one as long as it is open.
        }
        acceptor_ = {};
        connections_.clear();  // Joins each.
        try {
            store::remove_file(path_);
        } catch (const store::Error&) {
            // The next server binds over it.
        }
    }
    Impl(const Impl&) = delete;
    Impl& operator=(const Impl&) = delete;
    int fd() const noexcept { return listener_.get(); }

private:
    struct Connection {
        std::atomic<bool> is_done{false};
        std::jthread thread;
    };

    void bind_in(const std::string& folder) {
        listener_ = make_socket();
        const Address address(folder);
        store::remove_file(path_);
        const mode_t before = ::umask(0177);
        const int bound = ::bind(listener_.get(), address.get(), sizeof address.name);
        const int error_number = errno;
        ::umask(before);
        if (bound != 0) store::throw_errno(error_number, "bind " + path_);
        if (::listen(listener_.get(), static_cast<int>(kConnectionLimit)) != 0) store::throw_errno(errno, "listen");
    }

    /// Waits until `fd` has something; false: stop.
    bool wait_for(int fd) {
        std::array<pollfd, 2> waiting = {pollfd{.fd = fd, .events = POLLIN, .revents = 0},
                                         pollfd{.fd = stop_.get(), .events = POLLIN, .revents = 0}};
        while (::poll(waiting.data(), waiting.size(), -1) < 0) {
            if (errno != EINTR) return false;
        }
        return waiting[1].revents == 0;
    }

    void accept_all() {
        while (wait_for(listener_.get())) {
            store::UniqueFd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
            if (!connection) {
                if (errno == EMFILE || errno == ENFILE) std::this_thread::sleep_for(std::chrono::milliseconds(100));
                continue;
            }
            connections_.remove_if([](const Connection& old) { return old.is_done.load(); });
            if (!is_allowed(connection.get())) continue;
            if (connections_.size() >= kConnectionLimit) {
                send_all(connection.get(), failure("busy", "too many connections") + "\n");
                continue;
            }
            start(std::move(connection));
        }
    }

    void start(store::UniqueFd connection) {
        Connection& place = connections_.emplace_back();
        try {
            place.thread = std::jthread([this, &place, fd = std::move(connection)] {
                serve(fd.get());
                place.is_done = true;
            });
        } catch (const std::system_error&) {
            connections_.pop_back();  // No more threads: the client finds its connection closed.
        }
    }

    void serve(int connection) {
        std::unique_ptr<ControlSession> session;
        try {
            session = make_session_();
        } catch (const std::exception& error) {
            send_all(connection, failure("internal", error.what()) + "\n");
            return;
        }
        std::string pending;
        std::array<char, kLineLimitBytes> room{};
        while (wait_for(connection)) {
            const ssize_t got = ::recv(connection, room.data(), room.size(), MSG_DONTWAIT);
            if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) return;
            if (got > 0) pending.append(room.data(), static_cast<std::size_t>(got));
            for (std::size_t end = pending.find('\n'); end != std::string::npos; end = pending.find('\n')) {
                if (!send_all(connection, answer_line(*session, pending.substr(0, end)) + "\n")) return;
                pending.erase(0, end + 1);
            }
            if (pending.size() > kLineLimitBytes) {
                send_all(connection, failure("malformed", "line too long") + "\n");
                return;
            }
        }
    }

    const std::string path_;
    const MakeSession make_session_;
    store::UniqueFd listener_;
    store::UniqueFd stop_;
    std::list<Connection> connections_;  ///< Of the acceptor; of the destructor when that has ended.
    std::jthread acceptor_;
};

ControlSocket::ControlSocket(const std::string& folder, MakeSession make_session)
    : ControlSocket(folder, store::UniqueFd(), std::move(make_session)) {}
ControlSocket::ControlSocket(const std::string& folder, store::UniqueFd listener, MakeSession make_session)
    : impl_(std::make_unique<Impl>(folder, std::move(listener), std::move(make_session))) {}
ControlSocket::~ControlSocket() = default;

int ControlSocket::fd() const noexcept {
    return impl_->fd();
}

ControlClient::ControlClient(const std::string& folder) : fd_(make_socket()) {
    const Address address(folder);
    if (::connect(fd_.get(), address.get(), sizeof address.name) == 0) return;
    const bool is_absent = errno == ENOENT || errno == ECONNREFUSED;
    if (!is_absent) store::throw_errno(errno, "connect to " + folder + "/control");
    throw store::Error(store::Errc::unavailable, folder + ": no server runs here");
}

bool ControlClient::is_alive() const noexcept {
    pollfd looked_at{.fd = fd_.get(), .events = POLLRDHUP, .revents = 0};
    return ::poll(&looked_at, 1, 0) == 0;
}

std::string ControlClient::ask(const std::string& line) {
    constexpr std::size_t kAnswerLimitBytes = 1 << 20;
    send_all(fd_.get(), line + "\n");  // Where that fails, the server may have said why before it closed.
    std::string answer;
    std::array<char, 4096> room{};
    while (answer.size() < kAnswerLimitBytes) {
        const ssize_t got = ::recv(fd_.get(), room.data(), room.size(), 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        answer.append(room.data(), static_cast<std::size_t>(got));
        if (answer.back() == '\n') {
            answer.pop_back();
            return answer;
        }
    }
    throw store::Error(store::Errc::unavailable, "the server closed the socket without an answer");
}

std::string ask_control(const std::string& folder, const std::string& line) {
    constexpr unsigned kServersLimit = 1000;
    for (unsigned servers = 1;; ++servers) {
        ControlClient client(folder);
        try {
            return client.ask(line);
        } catch (const store::Error& error) {
            if (error.code() != store::Errc::unavailable || servers == kServersLimit) throw;
        }
    }
}

}  // namespace lamina::unionfs
