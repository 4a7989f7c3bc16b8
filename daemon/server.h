#pragma once

#include "daemon/handlers.h"
#include "daemon/http_session.h"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/thread_pool.hpp>

#include <memory>
#include <set>
#include <string>

namespace lamina::daemon {

/// The daemon's Unix socket: makes it (mode 0600, in a folder of mode 0700), answers its own uid and root, nobody else,
/// and removes it at the end. Throws Errc::busy when another process listens there.
class Server {
public:
    Server(boost::asio::io_context& context, std::string socket_path, const Handlers& handlers);
    ~Server();
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;

    /// Accepts until stop() or SIGTERM, SIGINT. Call once; it returns at once, the work is the event loop's.
    void start();
    /// Graceful: reads no further request, answers those in hand; after a grace period asks them to give up. Any
    /// thread.
    void stop();

private:
    boost::asio::awaitable<void> accept();
    boost::asio::awaitable<void> serve(std::shared_ptr<HttpSession> session);
    boost::asio::awaitable<void> stop_now();
    bool is_allowed(HttpSession::Socket& socket) const;

    boost::asio::io_context& context_;
    std::string socket_path_;
    const Handlers& handlers_;
    boost::asio::local::stream_protocol::acceptor acceptor_;
    boost::asio::signal_set signals_;
    boost::asio::thread_pool pool_;
    std::set<std::shared_ptr<HttpSession>> sessions_;
    bool is_stopping_ = false;
};

}  // namespace lamina::daemon
