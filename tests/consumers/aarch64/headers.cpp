#include <droppeft/droppeft.hpp>
