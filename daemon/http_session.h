#pragma once

#include "daemon/handlers.h"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/beast/core/flat_buffer.hpp>

#include <memory>
#include <optional>
#include <stop_token>

namespace lamina::daemon {

/// One connection: reads a request, has it handled on the pool, sends the reply, until the peer closes or stop().
/// Runs on the event loop alone. Requests have at most 1 MiB and must arrive within 30 s once begun.
class HttpSession : public std::enable_shared_from_this<HttpSession> {
public:
    using Socket = boost::asio::local::stream_protocol::socket;
    HttpSession(boost::asio::io_context& context, Socket socket, boost::asio::thread_pool& pool,
                const Handlers& handlers);

    boost::asio::awaitable<void> run();
    /// Answers the request in hand and reads no other.
    void stop();
    /// Also asks the running handler to give up.
    void cancel();

private:
    boost::asio::awaitable<std::optional<ApiRequest>> read_request();
    boost::asio::awaitable<bool> answer(const ApiRequest& request);
    boost::asio::awaitable<void> send_failure(const api::Failure& failure);
    boost::asio::awaitable<void> send_header(std::string_view content_type);
    boost::asio::awaitable<void> send_piece(const std::string& bytes);
    bool peer_is_gone();
    std::shared_ptr<ReplyChannel> start(const ApiRequest& request);

    boost::asio::io_context& context_;
    Socket socket_;
    boost::asio::thread_pool& pool_;
    const Handlers& handlers_;
    boost::beast::flat_buffer buffer_;
    std::stop_source stop_source_;
    bool is_stopping_ = false;
};

}  // namespace lamina::daemon
