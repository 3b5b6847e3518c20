# Runs the tests of https://github.com/Shopify/liquid (MIT licence) and writes down what they assert of a template
# and its data, as JSON lines; where they call a filter, as a template that does. It needs Ruby and minitest:
#   ruby record.rb DIR-OF-LIQUID cases.jsonl --seed 1
# Left out: data that is no JSON (drops, procs, ranges, times), the tags and filters that Carillon does not offer,
# and what the lax parser makes of templates that are wrong.
require 'json'
require 'time'
SRC = ARGV.shift
$LOAD_PATH.unshift(File.join(SRC, 'lib'), File.join(SRC, 'test'))
$out = File.open(ARGV.shift, 'w')
ENV['TZ'] = 'UTC'
# A gem that one of the tests wants and that has no part in this.
$LOADED_FEATURES << 'lru_redux.rb'
module LruRedux; class Cache < Hash; def initialize(*) = super(); end; end
module Kernel
  alias real_require require
  def require(name) = name == 'lru_redux' || real_require(name)
end
require 'strscan'
class StringScanner
  def peek_byte = string.getbyte(pos)
  def scan_byte
    b = string.getbyte(pos)
    self.pos += 1 if b
    b
  end
end
require 'test_helper'
def plain(v)
  case v
  when nil, true, false, String then v
  when Integer then raise "big" if v.abs > 2**53; v
  when Float then raise "nan" unless v.finite?; v
  when Array then v.map { |x| plain(x) }
  when Hash then raise "default" if v.default_proc || v.default; raise "proc" if v.class != Hash; v.to_h { |k, x| raise "key" unless k.is_a?(String); [k, plain(x)] }
  else raise "class #{v.class}"
  end
end
TAGS = %w[render tablerow liquid increment decrement echo ifchanged doc snippet]
FILTERS = %w[has reject h find find_index base64_encode base64_decode base64_url_safe_encode base64_url_safe_decode to_number xyzzy]
def offered?(text)
  text !~ /\{%-?\s*(#|(end)?(#{TAGS.join('|')})\b)/ && text !~ /\|\s*(#{FILTERS.join('|')})\b/
end
$seen = {}
$dropped = Hash.new(0)
def note(test, kind, template, want, data, partials, mode)
  return $dropped[mode.to_s] += 1 if %w[lax warn].include?(mode.to_s)
  return $dropped['not offered'] += 1 unless [template, *(partials || {}).values].all? { |x| offered?(x) }
  data = plain(data)
  row = {test: test, template: template, want: want}
  row[:data] = data unless data.empty?
  row[:partials] = partials if partials && !partials.empty?
  row[:error] = true if kind == :error
  return if $seen[row]
  $seen[row] = true
  raise "enc" unless template.valid_encoding? && (want.nil? || want.valid_encoding?)
  $out.puts JSON.generate(row)
rescue => e
  $dropped[e.message] += 1
end
module Recorder
  def assert_template_result(expected, template, assigns = {}, message: nil, partials: nil, error_mode: Liquid::Environment.default.error_mode, render_errors: false, template_factory: nil)
    super
    name = "#{self.class.name}##{self.name}"
    note(name, render_errors && expected.include?('Liquid error') ? :error : :ok, template, expected, assigns, partials, error_mode)
  end
  def assert_match_syntax_error(match, template, error_mode: nil)
    super
    note("#{self.class.name}##{self.name}", :error, template, nil, {}, nil, error_mode)
  end
  def assert_usage(*) ; super ; end
end
class Minitest::Test; prepend Recorder; end
# The filters' tests call them directly: written as a template with the arguments as data.
require File.join(SRC, 'test/integration/standard_filter_test.rb')
class StandardFiltersTest
  module Calls
    Liquid::StandardFilters.public_instance_methods(false).each do |f|
      define_method(f) do |*args|
        r = super(*args)
        begin
          kw = args.last.is_a?(Hash) && args.size > 1 ? args.last : nil
          pos = kw ? args[0..-2] : args
          data = {}
          pos.each_with_index { |a, i| data["a#{i}"] = plain(a) }
          t = "{{ a0 | #{f}"
          rest = (1...pos.size).map { |i| "a#{i}" }
          rest += kw.map { |k, v| data["k#{k}"] = plain(v); "#{k}: k#{k}" } if kw
          t += ": " + rest.join(", ") unless rest.empty?
          res = r.is_a?(Enumerator) || r.is_a?(Liquid::StandardFilters::InputIterator) ? r.to_a : r
          if res.is_a?(Array)
            t += " | json }}"; plain(res); want = JSON.generate(res)
          elsif res.is_a?(Hash)
            raise "hash"
          else
            t += " }}"; want = Liquid::Utils.to_s(res)
          end
          $pending << [t, want, data]
        rescue => e
          $dropped["call: " + e.message] += 1
        end
        r
      end
    end
  end
  class << self; attr_accessor :wrapped; end
end
$pending = []
class StandardFiltersTest::Filters
  prepend StandardFiltersTest::Calls
end rescue warn $!
module Settle
  def after_teardown
    super
    if passed? 
      $pending.each { |t, w, d| note("#{self.class.name}##{self.name}", :ok, t, w, d, nil, nil) }
    end
    $pending.clear
  end
end
class Minitest::Test; prepend Settle; end
Dir[File.join(SRC, 'test/integration/**/*_test.rb')].sort.each { |f| require f }
Minitest.after_run { $out.close; warn $dropped.inspect }
