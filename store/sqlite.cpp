#include "store/sqlite.h"

#include "store/error.h"
#include "store/file.h"
#include "store/file_ops.h"
#include "store/sqlite_pages.h"

#include <cerrno>
#include <limits>
#include <new>

namespace lamina::store {

namespace {

Errc errc_for(int primary_code, int system_errno) {
    switch (primary_code) {
        case SQLITE_FULL:
            return Errc::no_space;
        case SQLITE_CORRUPT:
        case SQLITE_NOTADB:
            return Errc::corrupt;
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
            return Errc::busy;
        case SQLITE_READONLY:
            return Errc::read_only;
        case SQLITE_IOERR:
        case SQLITE_CANTOPEN:
            if (system_errno == ENOSPC) return Errc::no_space;
            if (system_errno == EDQUOT) return Errc::quota;
            return Errc::unavailable;
        default:
            return Errc::internal;
    }
}

void configure(const Database& database, int option, int value) {
    int now = -1;
    const int code = ::sqlite3_db_config(database.handle(), option, value, &now);
    if (code != SQLITE_OK || now != value) throw_sqlite(database, code, "set-up");
}

}  // namespace

void throw_sqlite(const Database& database, int code, std::string_view step) {
    const int primary_code = code == SQLITE_IOERR_DATA ? SQLITE_CORRUPT : code & 0xff;
    if (primary_code == SQLITE_NOMEM || code == SQLITE_IOERR_NOMEM) throw std::bad_alloc();
    const int system_errno = database.handle() ? ::sqlite3_system_errno(database.handle()) : 0;
    const bool is_last = database.handle() && ::sqlite3_extended_errcode(database.handle()) == code;
    const char* const words = is_last ? ::sqlite3_errmsg(database.handle()) : ::sqlite3_errstr(code);
    if (code == SQLITE_IOERR_DATA) {  // SQLite's words would be "disk I/O error".
        throw Error(Errc::corrupt, database.path() + ": " + std::string(step) + ": a page does not match its checksum");
    }
    throw Error(errc_for(primary_code, system_errno), database.path() + ": " + std::string(step) + ": " + words);
}

Database Database::open(const std::string& path) {
    if (!exists(path)) File::create_or_open(path);  // SQLite would make it readable for others.
    Database database;
    database.path_ = path;
    sqlite3* handle = nullptr;
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_PRIVATECACHE | SQLITE_OPEN_EXRESCODE;
    const int code = ::sqlite3_open_v2(path.c_str(), &handle, flags, checked_pages());
    database.handle_.reset(handle);
    if (code != SQLITE_OK) throw_sqlite(database, code, "open");
    reserve_page_checksums(handle);
    configure(database, SQLITE_DBCONFIG_DEFENSIVE, 1);
    configure(database, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0);
    configure(database, SQLITE_DBCONFIG_ENABLE_FKEY, 1);
    configure(database, SQLITE_DBCONFIG_DQS_DDL, 0);
    configure(database, SQLITE_DBCONFIG_DQS_DML, 0);
    // Exclusive before WAL: the WAL's index is then ordinary memory, and no full disk can hit a mapping of it.
    database.execute(
        "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cell_size_check=ON;"
        "PRAGMA mmap_size=0; PRAGMA temp_store=MEMORY; PRAGMA journal_size_limit=4194304;");
    Statement mode(database, "PRAGMA journal_mode");
    Rows rows = mode.run();
    if (!rows.next() || rows.text(0) != "wal") throw Error(Errc::unsupported, path + ": the disk cannot do WAL");
    return database;
}

void Database::execute(const char* sql) {
    const int code = ::sqlite3_exec(handle_.get(), sql, nullptr, nullptr, nullptr);
    if (code != SQLITE_OK) throw_sqlite(*this, code, "execute");
}

Rows::~Rows() {
    if (!statement_) return;
    ::sqlite3_reset(statement_);  // Its code repeats what step() said.
    ::sqlite3_clear_bindings(statement_);
}

bool Rows::next() {
    const int code = ::sqlite3_step(statement_);
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) return false;
    throw_sqlite(*database_, code, "step");
}

std::int64_t Rows::integer(int column) const {
    return ::sqlite3_column_int64(statement_, column);
}

std::uint64_t Rows::count(int column) const {
    const std::int64_t value = integer(column);
    if (value < 0) throw Error(Errc::corrupt, database_->path() + ": a count is negative");
    return static_cast<std::uint64_t>(value);
}

std::string Rows::text(int column) const {
    const auto* const data = ::sqlite3_column_blob(statement_, column);
    const int size = ::sqlite3_column_bytes(statement_, column);
    return data ? std::string(static_cast<const char*>(data), static_cast<std::size_t>(size)) : std::string();
}

std::vector<std::byte> Rows::bytes(int column) const {
    const auto* const data = static_cast<const std::byte*>(::sqlite3_column_blob(statement_, column));
    const int size = ::sqlite3_column_bytes(statement_, column);
    return data ? std::vector<std::byte>(data, data + size) : std::vector<std::byte>();
}

Digest Rows::digest(int column) const {
    const auto* const data = static_cast<const std::byte*>(::sqlite3_column_blob(statement_, column));
    const int size = ::sqlite3_column_bytes(statement_, column);
    if (!data || size != static_cast<int>(Digest::kSizeBytes)) {
        throw Error(Errc::corrupt, database_->path() + ": a digest has not 32 bytes");
    }
    return Digest::from_bytes(std::span<const std::byte, Digest::kSizeBytes>(data, Digest::kSizeBytes));
}

Statement::Statement(const Database& database, std::string_view sql) : database_(&database) {
    sqlite3_stmt* statement = nullptr;
    const int code = ::sqlite3_prepare_v3(database.handle(), sql.data(), static_cast<int>(sql.size()),
                                          SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
    statement_.reset(statement);
    if (code != SQLITE_OK) throw_sqlite(database, code, "prepare");
}

void Statement::bind(int position, std::string_view value) {
    const char* const data = value.data() ? value.data() : "";
    check(::sqlite3_bind_text64(statement_.get(), position, data, value.size(), SQLITE_TRANSIENT, SQLITE_UTF8));
}

void Statement::bind(int position, std::span<const std::byte> value) {
    if (value.empty()) return check(::sqlite3_bind_zeroblob(statement_.get(), position, 0));
    check(::sqlite3_bind_blob64(statement_.get(), position, value.data(), value.size(), SQLITE_TRANSIENT));
}

void Statement::bind_integer(int position, std::int64_t value) {
    check(::sqlite3_bind_int64(statement_.get(), position, value));
}

void Statement::check(int code) const {
    if (code != SQLITE_OK) throw_sqlite(*database_, code, "bind");
}

Transaction::Transaction(Database& database) : database_(database) {
    database_.execute("BEGIN IMMEDIATE");
}

Transaction::~Transaction() {
    // A failed COMMIT may have ended the transaction already; a ROLLBACK that fails leaves nothing committed either.
    if (is_open_ && ::sqlite3_get_autocommit(database_.handle()) == 0) {
        ::sqlite3_exec(database_.handle(), "ROLLBACK", nullptr, nullptr, nullptr);
    }
}

void Transaction::commit() {
    fault_point("sql commit", database_.path());
    database_.execute("COMMIT");
    is_open_ = false;
    fault_point("sql committed", database_.path());
}

UnsyncedCommits::UnsyncedCommits(Database& database) : database_(database) {
    database_.execute("PRAGMA synchronous=NORMAL");
}

UnsyncedCommits::~UnsyncedCommits() {
    database_.execute("PRAGMA synchronous=FULL");
}

}  // namespace lamina::store
