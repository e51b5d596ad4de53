-- Sample data: three databases with some thousand rows, the same each time. MySQL 8 and MariaDB both understand it.
SET NAMES utf8mb4;
CREATE DATABASE shop CHARACTER SET utf8mb4;
CREATE DATABASE crm CHARACTER SET utf8mb4;
CREATE DATABASE inventory CHARACTER SET utf8mb4;

CREATE TABLE shop.digits (d INT PRIMARY KEY);
INSERT INTO shop.digits VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9);

CREATE TABLE shop.products (
    id INT PRIMARY KEY,
    name VARCHAR(80) NOT NULL,
    price DECIMAL(10, 2) NOT NULL
);
INSERT INTO shop.products
SELECT n + 1, CONCAT('Product ', n + 1), 5 + (n * 37 % 9500) / 100
FROM (SELECT a.d + 10 * b.d AS n FROM shop.digits a, shop.digits b) numbers;

CREATE TABLE shop.orders (
    id INT PRIMARY KEY AUTO_INCREMENT,
    product_id INT NOT NULL,
    quantity INT NOT NULL,
    ordered_at DATETIME NOT NULL,
    note VARCHAR(200)
);
INSERT INTO shop.orders (product_id, quantity, ordered_at, note)
SELECT 1 + n * 7 % 100, 1 + n % 5, TIMESTAMP('2025-01-01') + INTERVAL n MINUTE, IF(n % 9 = 0, 'express – überall', NULL)
FROM (
    SELECT a.d + 10 * b.d + 100 * c.d + 1000 * e.d AS n
    FROM shop.digits a, shop.digits b, shop.digits c, shop.digits e
) numbers
ORDER BY n;

CREATE TABLE crm.customers (
    id INT PRIMARY KEY,
    name VARCHAR(80) NOT NULL,
    email VARCHAR(120) NOT NULL,
    since DATE NOT NULL
);
INSERT INTO crm.customers
SELECT n + 1, CONCAT('Customer ', n + 1), CONCAT('customer', n + 1, '@example.com'), DATE('2020-01-01') + INTERVAL n DAY
FROM (
    SELECT a.d + 10 * b.d + 100 * c.d AS n FROM shop.digits a, shop.digits b, shop.digits c
) numbers;

CREATE TABLE inventory.stock (
    product_id INT NOT NULL,
    warehouse VARCHAR(20) NOT NULL,
    pieces INT NOT NULL,
    counted_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (product_id, warehouse)
);
INSERT INTO inventory.stock (product_id, warehouse, pieces)
SELECT p.id, w.name, p.id * 13 % 500
FROM shop.products p, (SELECT 'north' AS name UNION SELECT 'south' UNION SELECT 'west') w;

DROP TABLE shop.digits;
