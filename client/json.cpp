// Boost.JSON without its library: the definitions stand in this one file.
#include <boost/json/src.hpp>
