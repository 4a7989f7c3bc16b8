#include "daemon/reply_channel.h"

#include "store/error.h"
#include "support/catch.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include <thread>

using namespace lamina;
namespace asio = boost::asio;

namespace {

struct Received {
    std::string bytes;
    bool is_finished = false;
    std::optional<api::Failure> failure;
};

asio::awaitable<void> receive(std::shared_ptr<daemon::ReplyChannel> channel, Received& out) {
    while (!out.is_finished) {
        const daemon::ReplyChannel::Piece piece = co_await channel->next();
        out.bytes += piece.bytes;
        out.is_finished = piece.is_last;
        out.failure = piece.failure;
    }
}

}  // namespace

TEST_CASE("everything that is pushed arrives in order, however slow the reader", "[daemon][reply_channel]") {
    asio::io_context context;
    const auto channel = std::make_shared<daemon::ReplyChannel>(context);
    std::string expected;
    for (int i = 0; i < 200; ++i) expected += std::string(20'000, static_cast<char>('a' + i % 26));
    std::thread writer([&] {
        for (int i = 0; i < 200; ++i) channel->push(std::string(20'000, static_cast<char>('a' + i % 26)));
        channel->finish(std::nullopt);
    });
    Received received;
    asio::co_spawn(context, receive(channel, received), asio::detached);
    context.run();
    writer.join();
    CHECK(received.bytes == expected);
    CHECK(!received.failure);
}

TEST_CASE("a failure comes after what was written before it", "[daemon][reply_channel]") {
    asio::io_context context;
    const auto channel = std::make_shared<daemon::ReplyChannel>(context);
    channel->push("line\n");
    channel->finish(api::Failure{"corrupt", "bad"});
    Received received;
    asio::co_spawn(context, receive(channel, received), asio::detached);
    context.run();
    CHECK(received.bytes == "line\n");
    REQUIRE(received.failure);
    CHECK(received.failure->code == "corrupt");
}

TEST_CASE("a writer whose reader went away is told, also while it waits for room", "[daemon][reply_channel]") {
    asio::io_context context;
    const auto channel = std::make_shared<daemon::ReplyChannel>(context);
    bool is_told = false;
    std::thread writer([&] {
        try {
            for (int i = 0; i < 1000; ++i) channel->push(std::string(64 << 10, 'x'));
        } catch (const store::Error& error) {
            is_told = error.code() == store::Errc::cancelled;
        }
    });
    channel->close();
    writer.join();
    CHECK(is_told);
}
