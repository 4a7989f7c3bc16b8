#pragma once

#include "client/api.h"
#include "store/byte_stream.h"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace lamina::daemon {

/// Carries a reply's body from the pool thread that makes it to the connection that sends it: at most kMaxQueuedBytes
/// wait in between. Ends with finish(), once, whatever happens; close() from the connection makes the writer's next
/// call throw Errc::cancelled.
class ReplyChannel : public std::enable_shared_from_this<ReplyChannel> {
public:
    static constexpr std::size_t kMaxQueuedBytes = 1 << 20;

    explicit ReplyChannel(boost::asio::io_context& context) : context_(context), wake_(context) {}

    // For the pool thread.
    void push(std::string bytes);
    void finish(std::optional<api::Failure> failure);

    // For the connection, on the event loop.
    struct Piece {
        std::string bytes;  ///< Empty: nothing came for a while; look whether the peer is still there.
        bool is_last = false;
        std::optional<api::Failure> failure;  ///< With is_last.
    };
    boost::asio::awaitable<Piece> next();
    void close();

private:
    std::optional<Piece> take();
    void wake_reader();

    boost::asio::io_context& context_;
    boost::asio::steady_timer wake_;  ///< Touched on the event loop only.
    std::mutex mutex_;                ///< Guards what follows; never held across I/O.
    std::condition_variable has_room_;
    std::deque<std::string> queue_;
    std::size_t queued_bytes_ = 0;
    bool is_closed_ = false;
    bool is_finished_ = false;
    std::optional<api::Failure> failure_;
};

}  // namespace lamina::daemon
