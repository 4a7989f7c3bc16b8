#include "daemon/reply_channel.h"

#include "store/error.h"

#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <chrono>

namespace lamina::daemon {

namespace asio = boost::asio;

namespace {
constexpr auto kIdleLook = std::chrono::milliseconds(500);
}

void ReplyChannel::push(std::string bytes) {
    {
        std::unique_lock lock(mutex_);
        has_room_.wait(lock, [&] { return is_closed_ || queued_bytes_ < kMaxQueuedBytes; });
        if (is_closed_) throw store::Error(store::Errc::cancelled, "the client went away");
        queued_bytes_ += bytes.size();
        queue_.push_back(std::move(bytes));
    }
    wake_reader();
}

void ReplyChannel::finish(std::optional<api::Failure> failure) {
    {
        const std::lock_guard lock(mutex_);
        is_finished_ = true;
        failure_ = std::move(failure);
    }
    wake_reader();
}

void ReplyChannel::wake_reader() {
    asio::post(context_, [self = shared_from_this()] { self->wake_.cancel(); });
}

std::optional<ReplyChannel::Piece> ReplyChannel::take() {
    const std::lock_guard lock(mutex_);
    if (!queue_.empty()) {
        Piece piece{.bytes = std::move(queue_.front()), .is_last = false, .failure = std::nullopt};
        queue_.pop_front();
        queued_bytes_ -= piece.bytes.size();
        has_room_.notify_one();
        return piece;
    }
    if (is_finished_) return Piece{.bytes = {}, .is_last = true, .failure = failure_};
    return std::nullopt;
}

asio::awaitable<ReplyChannel::Piece> ReplyChannel::next() {
    // Between take() and the wait nothing else runs on the loop, so that a wake-up posted meanwhile finds the wait.
    if (auto piece = take()) co_return std::move(*piece);
    wake_.expires_after(kIdleLook);
    boost::system::error_code cancelled_when_woken;
    co_await wake_.async_wait(asio::redirect_error(asio::use_awaitable, cancelled_when_woken));
    if (auto piece = take()) co_return std::move(*piece);
    co_return Piece{};
}

void ReplyChannel::close() {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
    queue_.clear();
    queued_bytes_ = 0;
    has_room_.notify_all();
}

}  // namespace lamina::daemon
