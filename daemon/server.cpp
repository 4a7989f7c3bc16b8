#include "daemon/server.h"

#include "daemon/log.h"
#include "store/error.h"
#include "store/file.h"

#include <sys/socket.h>
#include <sys/stat.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <chrono>

namespace lamina::daemon {

namespace asio = boost::asio;
using Protocol = asio::local::stream_protocol;

namespace {

constexpr std::size_t kPoolThreads = 16;
constexpr auto kGrace = std::chrono::seconds(10);
constexpr auto kLook = std::chrono::milliseconds(20);
constexpr auto kAcceptPause = std::chrono::milliseconds(100);

bool somebody_listens(const std::string& path) {
    asio::io_context context;
    Protocol::socket probe(context);
    boost::system::error_code error;
    probe.connect(Protocol::endpoint(path), error);
    return !error;
}

Protocol::acceptor listen_at(asio::io_context& context, const std::string& path) {
    store::make_folders(store::folder_of(path));
    if (store::exists(path)) {
        if (somebody_listens(path)) {
            throw store::Error(store::Errc::busy, "socket " + path + ": another daemon listens there");
        }
        store::remove_file(path);
    }
    const mode_t old_mask = ::umask(0177);
    try {
        Protocol::acceptor acceptor(context, Protocol::endpoint(path));
        ::umask(old_mask);
        return acceptor;
    } catch (const boost::system::system_error& error) {
        ::umask(old_mask);
        store::throw_errno(error.code().value(), "socket " + path);
    }
}

}  // namespace

Server::Server(asio::io_context& context, std::string socket_path, const Handlers& handlers)
    : context_(context),
      socket_path_(std::move(socket_path)),
      handlers_(handlers),
      acceptor_(listen_at(context, socket_path_)),
      signals_(context, SIGTERM, SIGINT),
      pool_(kPoolThreads) {}

Server::~Server() {
    pool_.join();
}

void Server::start() {
    signals_.async_wait([this](boost::system::error_code error, int) {
        if (!error) stop();
    });
    asio::co_spawn(context_, accept(), asio::detached);
}

void Server::stop() {
    asio::post(context_, [this] {
        if (is_stopping_) return;
        is_stopping_ = true;
        asio::co_spawn(context_, stop_now(), asio::detached);
    });
}

bool Server::is_allowed(HttpSession::Socket& socket) const {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
    if (peer.uid == ::geteuid() || peer.uid == 0) return true;
    log::warning("refused a connection of uid " + std::to_string(peer.uid));
    return false;
}

asio::awaitable<void> Server::accept() {
    while (!is_stopping_) {
        boost::system::error_code error;
        HttpSession::Socket socket = co_await acceptor_.async_accept(asio::redirect_error(asio::use_awaitable, error));
        if (error == asio::error::operation_aborted) break;
        if (error) {  // No descriptors left, most likely: others will close theirs.
            log::warning("cannot accept: " + error.message());
            asio::steady_timer pause(context_, kAcceptPause);
            co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
            continue;
        }
        if (!is_allowed(socket)) continue;
        auto session = std::make_shared<HttpSession>(context_, std::move(socket), pool_, handlers_);
        asio::co_spawn(context_, serve(std::move(session)), asio::detached);
    }
}

asio::awaitable<void> Server::serve(std::shared_ptr<HttpSession> session) {
    sessions_.insert(session);
    try {
        co_await session->run();
    } catch (const std::exception& error) {  // One connection's trouble must not end the daemon.
        log::error(std::string("connection: ") + error.what());
    }
    sessions_.erase(session);
}

asio::awaitable<void> Server::stop_now() {
    log::info("stopping");
    boost::system::error_code ignored;
    acceptor_.close(ignored);
    signals_.cancel(ignored);
    ::unlink(socket_path_.c_str());
    for (const auto& session : sessions_) session->stop();
    const auto grace_end = std::chrono::steady_clock::now() + kGrace;
    bool is_cancelled = false;
    asio::steady_timer look(context_);
    while (!sessions_.empty()) {
        if (!is_cancelled && std::chrono::steady_clock::now() > grace_end) {
            is_cancelled = true;
            for (const auto& session : sessions_) session->cancel();
        }
        look.expires_after(kLook);
        co_await look.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
    }
    context_.stop();
}

}  // namespace lamina::daemon
