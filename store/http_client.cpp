#include "store/http_client.h"

#include "store/error.h"
#include "store/guarded.h"
#include "store/http_fields.h"
#include "store/http_transfer.h"

#include <curl/curl.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

// One thread drives libcurl's multi handle, which keeps the connections and lets no more than eight go to a host. Other
// threads hand it transfers, and wake it when they have read (so that a paused one goes on) or given up.
namespace lamina::store {

namespace {

constexpr long kMaxHostConnections = 8;
constexpr long kMaxConnections = 64;
constexpr long kKeptConnections = 16;
constexpr int kLookMs = 500;

void global_init() {
    static const CURLcode status = ::curl_global_init(CURL_GLOBAL_DEFAULT);
    if (status != CURLE_OK) throw Error(Errc::internal, std::string("libcurl: ") + ::curl_easy_strerror(status));
}

}  // namespace

class HttpClient::Engine {
public:
    Engine() {
        global_init();
        multi_ = ::curl_multi_init();
        if (!multi_) throw Error(Errc::internal, "libcurl: no memory");
        ::curl_multi_setopt(multi_, CURLMOPT_MAX_HOST_CONNECTIONS, kMaxHostConnections);
        ::curl_multi_setopt(multi_, CURLMOPT_MAX_TOTAL_CONNECTIONS, kMaxConnections);
        ::curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, kKeptConnections);
        ::curl_multi_setopt(multi_, CURLMOPT_PIPELINING, static_cast<long>(CURLPIPE_NOTHING));
        thread_ = std::thread([this] { run(); });
    }
    ~Engine() {
        orders_.with_lock([](Orders& orders) { orders.is_ending = true; });
        wake();
        thread_.join();
        ::curl_multi_cleanup(multi_);
    }
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    void add(std::shared_ptr<HttpTransfer> transfer) {
        orders_.with_lock([&](Orders& orders) { orders.added.push_back(std::move(transfer)); });
        wake();
    }
    void wake() { ::curl_multi_wakeup(multi_); }

private:
    struct Orders {
        std::vector<std::shared_ptr<HttpTransfer>> added;
        bool is_ending = false;
    };

    void run() {
        while (take_orders()) {
            int running = 0;
            ::curl_multi_perform(multi_, &running);
            take_results();
            look_after();
            ::curl_multi_poll(multi_, nullptr, 0, kLookMs, nullptr);
        }
        while (!transfers_.empty()) end(transfers_.begin()->first, CURLE_ABORTED_BY_CALLBACK);
    }

    bool take_orders() {
        return orders_.with_lock([&](Orders& orders) {
            for (auto& transfer : orders.added) {
                CURL* const easy = transfer->easy();
                transfers_.emplace(easy, std::move(transfer));
                ::curl_multi_add_handle(multi_, easy);
            }
            orders.added.clear();
            return !orders.is_ending;
        });
    }

    void take_results() {
        int left = 0;
        while (const CURLMsg* const message = ::curl_multi_info_read(multi_, &left)) {
            if (message->msg == CURLMSG_DONE) end(message->easy_handle, message->data.result);
        }
    }

    void look_after() {
        std::vector<CURL*> given_up;
        for (const auto& [easy, transfer] : transfers_) {
            transfer->resume_if_drained();
            transfer->fail_if_slow();
            if (transfer->is_given_up()) given_up.push_back(easy);
        }
        for (CURL* const easy : given_up) end(easy, CURLE_ABORTED_BY_CALLBACK);
    }

    void end(CURL* easy, CURLcode code) {
        const auto found = transfers_.find(easy);
        if (found == transfers_.end()) return;
        ::curl_multi_remove_handle(multi_, easy);
        found->second->finish(code);
        transfers_.erase(found);
    }

    CURLM* multi_ = nullptr;
    Guarded<Orders> orders_;
    std::map<CURL*, std::shared_ptr<HttpTransfer>> transfers_;  ///< The thread's own.
    std::thread thread_;
};

namespace {

/// Ends its transfer when it goes.
class Reply : public HttpReply {
public:
    Reply(std::shared_ptr<HttpTransfer> transfer, std::function<void()> wake, std::stop_token stop)
        : transfer_(std::move(transfer)), wake_(std::move(wake)), stop_(std::move(stop)) {}
    ~Reply() override {
        transfer_->give_up();
        wake_();
    }

    int status() const override { return transfer_->status(); }
    const std::string& peer_address() const override { return transfer_->peer_address(); }
    std::string field(std::string_view name) const override {
        std::string value;
        for (const std::string_view line : transfer_->header_lines()) {
            const std::size_t colon = line.find(':');
            if (colon == std::string_view::npos || lower_case(line.substr(0, colon)) != lower_case(name)) continue;
            std::string_view text = line.substr(colon + 1);
            while (text.starts_with(' ') || text.starts_with('\t')) text.remove_prefix(1);
            while (text.ends_with(' ') || text.ends_with('\t')) text.remove_suffix(1);
            if (!value.empty()) value += ", ";
            value += text;
        }
        return value;
    }
    std::size_t read(std::span<std::byte> out) override {
        bool made_room = false;
        const std::size_t count = transfer_->read(out, stop_, made_room);
        if (made_room) wake_();
        return count;
    }

private:
    std::shared_ptr<HttpTransfer> transfer_;
    std::function<void()> wake_;
    std::stop_token stop_;
};

}  // namespace

std::vector<std::byte> HttpReply::read_all(std::uint64_t limit_bytes) {
    std::vector<std::byte> body;
    std::vector<std::byte> piece(64 << 10);
    while (const std::size_t count = read(piece)) {
        if (body.size() + count > limit_bytes) {
            throw Error(Errc::malformed, "the reply has more than " + std::to_string(limit_bytes) + " bytes");
        }
        body.insert(body.end(), piece.begin(), piece.begin() + static_cast<std::ptrdiff_t>(count));
    }
    return body;
}

HttpClient::HttpClient(const HttpLimits& limits) : limits_(limits), engine_(std::make_unique<Engine>()) {}

HttpClient::~HttpClient() = default;

std::unique_ptr<HttpReply> HttpClient::send(HttpRequest request, const std::stop_token& stop) {
    const auto transfer = std::make_shared<HttpTransfer>(std::move(request), limits_);
    auto reply = std::make_unique<Reply>(
        transfer, [engine = engine_.get()] { engine->wake(); }, stop);
    engine_->add(transfer);
    transfer->wait_for_header(stop);
    return reply;
}

}  // namespace lamina::store
